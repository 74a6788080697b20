"""A PostgreSQL server for tests, at a port that the system picks.

    python postgres_server.py [-c SETTING]…

Prints one line of JSON once it serves: `port`, `socket` (the folder of its Unix socket), `certificate`
(a PEM file: that of its own authority; `server.pem` beside it is its own). It takes TLS and no TLS. The user `lab` has the password
`pass word` by TCP, and `postgres` needs none by the socket. Lines on stdin: `kill` ends all of its
processes at once, as `kill -9` does, and `start` starts it again; `standby` starts a standby of it, with the same
port and the folder `standby` of its Unix socket. Each is answered by `done`.
`GLUELESS_TEST_POSTGRES` names a folder with programs of another version (`initdb`, `postgres`).
It lives until its stdin closes, so it cannot outlive the process that holds the other end of that
pipe. PostgreSQL refuses to run as root: then it runs as the user `postgres`.
"""

import glob
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

BIN = os.environ.get("GLUELESS_TEST_POSTGRES", "").split() + sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1:] + os.environ["PATH"].split(":")
FOLDER = tempfile.mkdtemp(prefix="glueless-postgres-")
DATA = f"{FOLDER}/data"


def tool(name):
    return next(path for path in (f"{folder}/{name}" for folder in BIN) if os.path.exists(path))


def as_user():
    """Turns a child of root into a process of `postgres`."""
    if os.getuid() == 0:
        user = pwd.getpwnam("postgres")
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, preexec_fn=as_user, cwd="/")


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def certify():
    """Makes an authority, and a certificate of it for `localhost`."""
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
    authority = [*request, "-keyout", f"{DATA}/ca.key", "-out", f"{DATA}/ca.pem", "-subj", "/CN=lab"]
    server = ["-keyout", f"{DATA}/server.key", "-out", f"{DATA}/server.crt", "-subj", "/CN=localhost"]
    signed = ["-CA", f"{DATA}/ca.pem", "-CAkey", f"{DATA}/ca.key", "-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=CA:FALSE"]
    for command in (authority, [*request, *server, *signed]):
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, preexec_fn=as_user)


def start():
    # What a crash of the machine would lose does not matter here.
    command = [tool("postgres"), "-D", DATA, "-p", str(PORT), "-k", FOLDER, "-c", "fsync=off", "-c", "ssl=on"]
    command += ["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=50", "-c", "autovacuum=off", *sys.argv[1:]]
    log = open(f"{FOLDER}/log", "ab")
    for _ in range(100):
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=begin_group, cwd="/")
        while server.poll() is None:
            if subprocess.run([tool("pg_isready"), "-q", "-h", FOLDER, "-p", str(PORT)]).returncode == 0:
                return server
        # Processes of the one that was killed can still be there.
        time.sleep(0.1)
    sys.exit(open(f"{FOLDER}/log").read())


def start_standby():
    """Starts a standby from a copy of the files."""
    kill(processes.pop(0))
    data, folder = f"{FOLDER}/standby-data", f"{FOLDER}/standby"
    run("cp", "-a", DATA, data)
    run("rm", "-f", f"{data}/postmaster.pid")
    run("touch", f"{data}/standby.signal")
    processes.append(start())
    os.mkdir(folder)
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
    command = [tool("postgres"), "-D", data, "-p", str(PORT), "-k", folder, "-c", "fsync=off", "-c", "listen_addresses="]
    command += ["-c", "hot_standby_feedback=on", "-c", "max_connections=50", *sys.argv[1:]]
    command += ["-c", f"primary_conninfo=host={FOLDER} port={PORT} user=postgres"]
    log = open(f"{FOLDER}/standby-log", "ab")
    standby = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=begin_group, cwd="/")
    processes.append(standby)
    while subprocess.run([tool("pg_isready"), "-q", "-h", folder, "-p", str(PORT)]).returncode:
        if standby.poll() is not None:
            sys.exit(open(f"{FOLDER}/standby-log").read())


def begin_group():
    as_user()
    os.setsid()


def kill(server):
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    # Its other processes see that it is gone; a new server waits for them.
    stats = [f"/proc/{name}/stat" for name in os.listdir("/proc") if name.isdigit()]
    for stat in stats:
        try:
            fields = open(stat).read().rsplit(")", 1)[1].split()
            if int(fields[3]) == server.pid:
                os.kill(int(stat.split("/")[2]), signal.SIGKILL)
        except OSError:
            pass


if os.getuid() == 0:
    shutil.chown(FOLDER, "postgres")
os.chmod(FOLDER, 0o755)
run(tool("initdb"), "-D", DATA, "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "-A", "trust", "--no-sync")
certify()
with open(f"{DATA}/pg_hba.conf", "w") as rules:
    rules.write("local all,replication all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
PORT = free_port()
processes = [start()]
for name, copy in {"ca.pem": "ca.pem", "server.crt": "server.pem"}.items():
    shutil.copy(f"{DATA}/{name}", f"{FOLDER}/{copy}")
    os.chmod(f"{FOLDER}/{copy}", 0o644)
make = "CREATE ROLE lab LOGIN REPLICATION PASSWORD 'pass word'"
run(tool("psql"), "-q", "-h", FOLDER, "-p", str(PORT), "-U", "postgres", "-c", make)
print(json.dumps({"port": PORT, "socket": FOLDER, "certificate": f"{FOLDER}/ca.pem", "psql": tool("psql")}), flush=True)
for line in sys.stdin:
    if line.strip() == "kill":
        kill(processes.pop(0))
    elif line.strip() == "standby":
        start_standby()
    else:
        processes.insert(0, start())
    print("done", flush=True)
for process in processes:
    kill(process)
shutil.rmtree(FOLDER, ignore_errors=True)
