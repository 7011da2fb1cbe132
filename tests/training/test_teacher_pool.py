"""The file of teacher samples that a run keeps."""

import pytest

from didi.errors import DidiError, UsageError

from .distill_case import with_discriminator


def test_a_truncated_teacher_pool_is_reported_with_file_and_remedy(make_job, tmp_path):
    config = with_discriminator(real_source="teacher-pool")
    make_job(config)
    file = tmp_path / "teacher-pool.safetensors"
    whole = file.read_bytes()
    for length in (0, 7, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(DidiError, match=f"{file} is damaged or not readable .*: delete it, and the next") as caught:
            make_job(config)
        assert not isinstance(caught.value, UsageError)
        assert "\n" not in str(caught.value)
    file.unlink()
    make_job(config)
    assert file.read_bytes() == whole
