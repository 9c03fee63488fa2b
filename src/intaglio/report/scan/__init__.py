"""The sections of a scan's page: what data would do to the model, before anything is trained."""
