"""Tools for assistants, by the Model Context Protocol: the operations of the REST API, with short answers."""
