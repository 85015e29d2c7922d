"""Compiles every CUDA kernel with nvrtc for several GPUs, without a GPU, and prints what each needs.

    python3 -m venv venv && venv/bin/pip install --no-deps 'nvidia-cuda-nvrtc==13.0.*'
    venv/bin/python benches/nvrtc.py [FILE.cu ...]

A file that is compiled with constants names them in lines such as `// check: HIDDEN=128 ROWS=2`, one line per set. A file
that is compiled behind another one names it in a line such as `// behind: recurrent.cu`.
Prints registers, spilled bytes, and static shared memory. Fails if a file does not compile, or if an f32 kernel spills
registers to memory.
"""
import ctypes
import glob
import os
import re
import sys

ARCHITECTURES = ["75", "80", "90", "120"]
FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "src", "kernels", "cuda")


def library():
    """Loads nvrtc from this Python's packages, or from where the system finds it."""
    found = [path for folder in sys.path for path in glob.glob(f"{folder}/nvidia/*/lib/libnvrtc.so.1?")]
    if not found:
        return ctypes.CDLL("libnvrtc.so")
    for builtins in glob.glob(f"{os.path.dirname(found[0])}/libnvrtc-builtins.so.*"):
        ctypes.CDLL(builtins, mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(found[0])


def compile_program(nvrtc, source, options):
    """Returns nvrtc's status and log."""
    program = ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"prelude.cu", 0, None, None) == 0
    options = [option.encode() for option in options]
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return status, log.value.decode()


def kernels(log):
    """Returns (name, registers, spilled bytes, shared bytes) of each kernel in a log of ptxas."""
    for part in log.split("Compiling entry function '")[1:]:
        name = part.split("'")[0]
        spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill", part))
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        shared = re.search(r"(\d+) bytes smem", part)
        yield name, registers, spills, int(shared[1]) if shared else 0


def main():
    nvrtc = library()
    with open(os.path.join(FOLDER, "prelude.cu")) as file:
        prelude = file.read()
    names = sys.argv[1:] or sorted(os.path.basename(path) for path in glob.glob(f"{FOLDER}/*.cu"))
    failed = False
    print(f"{'kernel':60} {'real':6} {'sm':>4} {'registers':>9} {'spilled':>7} {'shared':>6}")
    for name in names:
        if name == "prelude.cu":
            continue
        with open(os.path.join(FOLDER, name)) as file:
            text = file.read()
        source = prelude
        for before in re.findall(r"^// behind: (.*)$", text, re.M):
            with open(os.path.join(FOLDER, before)) as file:
                source += f'\n#line 1 "{before}"\n{file.read()}'
        source += f'\n#line 1 "{name}"\n{text}'
        for constants in re.findall(r"^// check: (.*)$", text, re.M) or [""]:
            for real in ["float", "double"]:
                for architecture in ARCHITECTURES:
                    options = [f"-DREAL={real}"] + [f"-D{constant}" for constant in constants.split()]
                    options += [f"--gpu-architecture=sm_{architecture}", "--std=c++17", "--diag-suppress=177"]
                    status, log = compile_program(nvrtc, source, options + ["--ptxas-options=-v"])
                    if status != 0:
                        print(f"{name} {constants} {real} sm_{architecture}: does not compile\n{log}")
                        failed = True
                        continue
                    for kernel, registers, spills, shared in kernels(log):
                        spilled = real == "float" and spills > 0
                        failed |= spilled
                        print(f"{name + ':' + kernel + ' ' + constants:60} {real:6} {architecture:>4} {registers:9} "
                              f"{spills:7} {shared:6}{' <- spills' if spilled else ''}")
    sys.exit(failed)


main()
