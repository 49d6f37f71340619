"""infernet/engines/llama_library.py: what keeps llama.cpp from loading is told with what to do about it."""

from __future__ import annotations

from infernet.engines.llama_library import explain_import_error, missing_cpu_features


def test_a_cpu_that_is_too_old_is_told_and_not_tried() -> None:
    old = "processor : 0\nflags\t\t: fpu sse sse2 avx fma f16c\nbugs\t: none\n"
    assert missing_cpu_features("x86_64", old) == ["avx2", "bmi2"]
    assert missing_cpu_features("x86_64", old.replace("avx ", "avx avx2 bmi2 ")) == []
    assert missing_cpu_features("aarch64", "Features : fp asimd") == []


def test_what_is_missing_is_told_with_the_command_that_brings_it() -> None:
    gomp = ImportError("libgomp.so.1: cannot open shared object file: No such file or directory")
    assert "apt-get install libgomp1" in explain_import_error(gomp)
    assert "pip install infernet[llama]" in explain_import_error(ModuleNotFoundError("No module named 'xllamacpp'"))
    assert "reinstall" in explain_import_error(ImportError("undefined symbol"))
