"""A script that tries to leave its sandbox, or to reach what is not its own."""

import ast
import ctypes
import os
import platform
import py_compile
import socket
import subprocess
import sys
import threading

import pytest

from cloister.enclave._limits import ResourceGroup
from cloister.enclave._sandbox import Bind, run_sandboxed
from cloister.manifest import Limits

LIMITS = Limits(memory_bytes=512 << 20, time_s=30, processes=64)


def run(*argv, binds=(), limits=LIMITS, **options):
    with ResourceGroup(limits) as group:
        return run_sandboxed(argv, binds=binds, limits=limits, group=group, **options)


def python(source, **options):
    ended = run("python", "-c", source, **options)
    assert ended.ended == "exited"
    return ended.status, ended.output.decode()


def errno_of(statement):
    return f"""
import ctypes, errno, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    result = libc.syscall(*arguments)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else "worked"
def attempt(function, *arguments):
    try:
        function(*arguments)
        return "worked"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
print({statement})
"""


@pytest.fixture
def listener():
    server = socket.create_server(("127.0.0.1", 0))
    heard = []

    def serve():
        try:
            connection, _ = server.accept()
            heard.append(connection.recv(100))
        except OSError:
            pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield server.getsockname()[1], heard
    server.close()


def test_a_server_on_the_hosts_loopback_hears_nothing(listener):
    port, heard = listener
    status, said = python(f"import socket; socket.create_connection(('127.0.0.1', {port}), 3).send(b'secret')")
    assert status != 0
    assert "Error" in said
    assert heard == []


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG"])
def test_no_socket_but_a_local_one_can_be_made(family):
    _, said = python(errno_of(f"attempt(socket.socket, socket.{family}, socket.SOCK_RAW)"))
    assert said.strip() == "EAFNOSUPPORT"


def test_a_local_socket_pair_works():
    assert python(errno_of("attempt(socket.socketpair)"))[1].strip() == "worked"


def test_names_do_not_resolve():
    status, said = python("import socket; print(socket.getaddrinfo('example.org', 443))")
    assert status != 0
    assert "gaierror" in said


def test_an_abstract_socket_of_the_host_is_out_of_reach():
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0cloister-test-abstract")
        server.listen()
        said = python(errno_of("attempt(socket.socket(socket.AF_UNIX).connect, '\\0cloister-test-abstract')"))[1]
    assert said.strip() == "ECONNREFUSED"


x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers below are those of x86-64")


@x86
@pytest.mark.parametrize(
    "call",
    [
        "call(101, 0, 0, 0, 0)",  # ptrace
        "call(310, 1, 0, 0, 0, 0, 0)",  # process_vm_readv
        "call(165, b'none', b'/tmp', b'tmpfs', 0, 0)",  # mount
        "call(272, 0x10000000)",  # unshare(CLONE_NEWUSER)
        "call(56, 0x10000000 | 17, 0, 0, 0, 0)",  # clone(CLONE_NEWUSER)
        "call(56, 0x40000000 | 17, 0, 0, 0, 0)",  # clone(CLONE_NEWNET)
        "call(308, 0, 0)",  # setns
        "call(250, 0, 0, 0, 0, 0)",  # keyctl
        "call(248, b'user', b'x', b'x', 1, -1)",  # add_key
        "call(321, 0, 0, 0)",  # bpf
        "call(298, 0, 0, 0, 0, 0)",  # perf_event_open
        "call(323, 0)",  # userfaultfd
        "call(304, 0, 0, 0)",  # open_by_handle_at
        "call(16, 0, 0x5412, b'x')",  # ioctl(TIOCSTI)
        "call(135, 0x0040000)",  # personality
        "call(161, b'/tmp')",  # chroot
    ],
)
def test_calls_that_break_walls_are_refused(call):
    assert python(errno_of(call))[1].strip() == "EPERM"


@x86
@pytest.mark.parametrize("call", ["call(435, 0, 0)", "call(425, 1, 0)", "call(500, 0)"])
def test_calls_that_pass_no_filter_do_not_exist(call):
    assert python(errno_of(call))[1].strip() == "ENOSYS"


@x86
def test_the_x32_numbering_of_the_same_calls_kills():
    status, said = python(errno_of("call(0x40000000 | 165, b'none', b'/tmp', b'tmpfs', 0, 0)"))
    assert (status, said) == (128 + 31, "")


def test_the_hosts_files_are_not_there(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    home = str(secret)
    status, said = python(f"""
import os
for path in ({home!r}, '/etc/shadow', '/etc/hostname', '/sys', '/home', '/var', '/boot', '/proc/1/root/etc/shadow'):
    assert not os.path.exists(path), path
assert set(os.listdir('/etc')) <= {{'passwd', 'group', 'ld.so.cache', 'alternatives'}}
assert open('/etc/passwd').read().startswith('enclave:')
""")
    assert (status, said) == (0, "")


NAMESPACES = [
    kind for kind in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts") if os.path.lexists(f"/proc/self/ns/{kind}")
]


@pytest.fixture(scope="module")
def namespaces():
    """The identity of each namespace that a script is in."""
    status, said = python(
        f"import os\nprint({{kind: os.readlink(f'/proc/self/ns/{{kind}}') for kind in {NAMESPACES!r}}})"
    )
    assert status == 0
    return ast.literal_eval(said)


@pytest.mark.parametrize("kind", NAMESPACES)
def test_each_namespace_is_another_than_ours(kind, namespaces):
    ours = os.readlink(f"/proc/self/ns/{kind}")
    assert namespaces[kind].startswith(f"{kind}:[")
    assert namespaces[kind] != ours


def test_a_shared_memory_segment_of_the_host_is_out_of_reach():
    """System V memory has no file: nothing but the namespace stands before it."""
    libc = ctypes.CDLL(None, use_errno=True)
    key = int.from_bytes(os.urandom(3), "big") | 1 << 24
    segment = libc.shmget(key, 4096, 0o1000 | 0o666)  # IPC_CREAT
    assert segment >= 0
    try:
        control = f"import ctypes; print(ctypes.CDLL(None).shmget({key}, 0, 0) >= 0)"
        assert subprocess.run([sys.executable, "-c", control], capture_output=True, check=True).stdout == b"True\n"
        assert python(control) == (0, "False\n")
    finally:
        libc.shmctl(segment, 0, None)  # IPC_RMID


def test_the_hosts_name_is_not_told():
    assert python("import os; print(os.uname().nodename)") == (0, "enclave\n")


def test_other_processes_are_not_there():
    status, said = python("import os; print(len([p for p in os.listdir('/proc') if p.isdigit()]), os.getpid())")
    assert status == 0
    assert int(said.split()[0]) <= 3


@pytest.mark.parametrize(
    "path",
    [
        "/proc/sys/kernel/core_pattern",  # root on the host owns it: a writable one runs programs outside
        "/proc/sys/vm/swappiness",
        "/proc/self/oom_score_adj",
        "/usr/x",
        "/x",
        "/dev/x",
        "/code/x",
        "/inputs/a/x",
    ],
)
def test_what_is_not_an_output_cannot_be_written(path, tmp_path):
    binds = [Bind(tmp_path, "/code"), Bind(tmp_path, "/inputs/a")]
    _, said = python(errno_of(f"attempt(open, {path!r}, 'w')"), binds=binds)
    assert said.strip() in ("EROFS", "EACCES", "EPERM")
    assert list(tmp_path.iterdir()) == []


def test_only_the_fixed_variables_are_there(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/x.so")
    monkeypatch.setenv("SECRET_TOKEN", "s")
    _, said = python("import os; print(sorted(os.environ))")
    allowed = {
        "HOME",
        "LANG",
        "PATH",
        "PWD",
        "PYTHONNOUSERSITE",
        "PYTHONPYCACHEPREFIX",
        "TMPDIR",
        "TZ",
        "USER",
        "LC_CTYPE",
    }
    assert set(ast.literal_eval(said)) <= allowed


def test_no_capability_and_no_way_to_gain_one():
    _, said = python("print([l for l in open('/proc/self/status') if l.startswith(('Cap', 'NoNew', 'Seccomp:'))])")
    fields = dict(line.split(":\t") for line in ast.literal_eval(said))
    assert {int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert fields["NoNewPrivs"].strip() == "1"
    assert fields["Seccomp"].strip() == "2"


def test_no_descriptor_of_the_launcher_is_inherited(tmp_path):
    with open(tmp_path / "key", "wb"):
        _, said = python("import os; print([n for n in range(3, 4096) if os.path.lexists(f'/proc/self/fd/{n}')])")
    assert said == "[]\n"  # the status and the filter of bubblewrap among them: a script could forge its own end


@x86
def test_the_sandboxs_first_process_keeps_its_descriptors(tmp_path):
    said = python(errno_of("attempt(os.open, '/proc/1/fd/6', os.O_WRONLY), call(438, os.pidfd_open(1), 6, 0)"))[1]
    assert "worked" not in said


def test_a_module_in_the_code_image_is_not_run_at_interpreter_start(tmp_path):
    for name in ("sitecustomize.py", "usercustomize.py", "site.py", "encodings.py", "evil.pth"):
        (tmp_path / name).write_text("import sys; print('planted'); sys.exit(3)")
    (tmp_path / "train.py").write_text("print('trained')")
    ended = run("python", "train.py", binds=[Bind(tmp_path, "/code")], cwd="/code")
    assert (ended.status, ended.output) == (0, b"trained\n")


def test_bytecode_beside_a_source_file_is_not_read(tmp_path):
    source = tmp_path / "lib.py"
    source.write_text("print('planted')")
    py_compile.compile(str(source))
    times = source.stat()
    source.write_text("print('genuine')")
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    ended = run("python", "-c", "import lib", binds=[Bind(tmp_path, "/code")], cwd="/code")
    assert ended.output == b"genuine\n"


def test_a_script_that_stays_behind_is_killed_with_its_sandbox(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    source = "import os,time\nif os.fork()==0:\n os.setsid()\n time.sleep(2)\n open('/outputs/o/late','w')"
    run("python", "-c", source, binds=[Bind(out, "/outputs/o", writable=True)])
    threading.Event().wait(2.5)
    assert list(out.iterdir()) == []
