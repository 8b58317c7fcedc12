"""What checks, validation, repair, cleanup, imports, the doctor, diagnoses and the like return."""

from ckpt_lib.advice.results import Advice
from ckpt_lib.advice.whereabouts import Diagnosis
from ckpt_lib.core.not_saved import NotSaved
from ckpt_lib.inspecting.results import InspectedState, InspectedTensor, Inspection, StoredCheckpoint, TensorStatistics
from ckpt_lib.maintenance.backup_status import BackupStatus
from ckpt_lib.maintenance.cleanup import CleanupReport
from ckpt_lib.maintenance.findings import DoctorReport
from ckpt_lib.maintenance.importing.report import ImportedItem, ImportReport
from ckpt_lib.maintenance.repair import RepairReport
from ckpt_lib.maintenance.scrub import ScrubReport
from ckpt_lib.maintenance.validate import ValidationReport
from ckpt_lib.saving.check_report import CheckReport
from ckpt_lib.saving.fallback import ReconcileReport

__all__ = [
    "Advice",
    "BackupStatus",
    "CheckReport",
    "CleanupReport",
    "Diagnosis",
    "DoctorReport",
    "ImportReport",
    "ImportedItem",
    "InspectedState",
    "InspectedTensor",
    "Inspection",
    "NotSaved",
    "ReconcileReport",
    "RepairReport",
    "ScrubReport",
    "StoredCheckpoint",
    "TensorStatistics",
    "ValidationReport",
]
