"""One Prefect task per stage; each builds one stage of ``capgap_core``."""
