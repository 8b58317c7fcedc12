"""What validation, scrub, repair, cleanup, imports, reconcile and the doctor return."""

from ckpt_lib.maintenance.backup_status import BackupStatus
from ckpt_lib.maintenance.cleanup import CleanupReport
from ckpt_lib.maintenance.findings import DoctorReport
from ckpt_lib.maintenance.import_report import ImportedItem, ImportReport
from ckpt_lib.maintenance.repair import RepairReport
from ckpt_lib.maintenance.scrub import ScrubReport
from ckpt_lib.maintenance.validate import ValidationReport
from ckpt_lib.saving.fallback import ReconcileReport

__all__ = [
    "BackupStatus",
    "CleanupReport",
    "DoctorReport",
    "ImportReport",
    "ImportedItem",
    "ReconcileReport",
    "RepairReport",
    "ScrubReport",
    "ValidationReport",
]
