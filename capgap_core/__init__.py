"""Teacher assistants, slimming and distillation of language models, without any orchestrator."""
