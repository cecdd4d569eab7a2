from fixtures import fresh_accelerator, one_thread  # noqa: F401
