from fixtures import fresh_accelerator, one_thread, own_cache  # noqa: F401
