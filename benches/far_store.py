"""Times glueless on a remote S3 store, which answers after 30 ms.

    python far_store.py --glueless BINARY --generate BINARY --server BINARY --work DIR

The cases narrow and tiny are folded from this machine's disk, from the store
without a delay, and from the store with it, in turns. The store is s3s-fs, a
server over a local folder, behind a proxy that delays every answer; both take
processor time from the run. The raw files are in the store; the table and the
state are not, because this server does not accept multipart uploads under names
as long as those in staging.
"""

import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time

from measure import CASES, make, parser_of, print_machine, run_glueless, spread

DELAY_SECONDS = 0.030
BUCKET = "far"
PIECE_BYTES = 256 << 10


def main():
    parser = parser_of(__doc__, "glueless", "generate", "server", "work")
    parser.add_argument("--runs", type=int, default=3, help="turns per case (default 3)")
    arguments = parser.parse_args()
    print_machine(arguments.glueless)
    print(f"\n### far store: every answer after {DELAY_SECONDS * 1000:.0f} ms\n")
    print("| case | local, wall s | near, wall s | far, wall s | far, peak memory MB | requests | far / local | far / near |")
    print("|---|---|---|---|---|---|---|---|")
    root = arguments.work / "far"
    for case in ("narrow", "tiny"):
        shape, options = CASES[case]
        raw = make(arguments, case, shape, options)
        local, near, far = [], [], []
        for _ in range(arguments.runs):
            shutil.rmtree(root, ignore_errors=True)
            (root / BUCKET).mkdir(parents=True)
            subprocess.run(["cp", "-al", raw, root / BUCKET / "raw"], check=True)
            (root / BUCKET / "raw" / "made").unlink()
            for folder in ("local", "lake-0", f"lake-{DELAY_SECONDS}"):
                (root / folder).mkdir()
            os.sync()
            local.append(run_glueless(arguments, shape, raw, root / "local"))
            shutil.rmtree(root / "local")
            for runs, delay in ((near, 0), (far, DELAY_SECONDS)):
                os.sync()
                with store(arguments.server, root, delay) as far_store:
                    run = run_glueless(arguments, shape, f"s3://{BUCKET}/raw", root / f"lake-{delay}")
                    runs.append({**run, "requests": far_store.requests})
            print(case, *(f"{runs[-1]['seconds']:.2f} s" for runs in (local, near, far)), file=sys.stderr)
        seconds = lambda runs: [run["seconds"] for run in runs]
        ratio = lambda to: statistics.median(f / t for f, t in zip(seconds(far), seconds(to)))
        cells = [
            case,
            spread(seconds(local), "{:.2f}"),
            spread(seconds(near), "{:.2f}"),
            spread(seconds(far), "{:.2f}"),
            spread([run["peak_bytes"] / 1e6 for run in far], "{:,.0f}"),
            f"{far[-1]['requests']:,}",
            f"{ratio(local):.2f}",
            f"{ratio(near):.2f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)
    shutil.rmtree(root)


@contextlib.contextmanager
def store(server, root, delay):
    """Starts the store and sets the environment to use it."""
    ports = 8014, 8015
    far_store = Far(*ports, delay)
    credentials = ["--access-key", "bench", "--secret-key", "bench-secret"]
    command = [server, "--host", "127.0.0.1", "--port", str(ports[0]), *credentials, root]
    log = open(root / "server.log", "wb")
    process = subprocess.Popen(command, stdout=log, stderr=log)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[1]}",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench-secret",
        "AWS_REGION": "us-east-1",
    }
    try:
        with far_store:
            yield far_store
    finally:
        process.terminate()
        process.wait()


class Far:
    """A proxy that delays each answer after its request. It can distinguish the requests of a
    connection because none is sent before the answer to the last one."""

    def __init__(self, server_port, port, delay):
        self.server_port, self.port, self.delay = server_port, port, delay
        self.requests = 0
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self.loop.run_until_complete, args=[self.serve()])

    def __enter__(self):
        self.thread.start()
        self.ready.wait()
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join()

    async def serve(self):
        self.over = asyncio.Event()
        listener = await asyncio.start_server(self.connect, "127.0.0.1", self.port)
        self.ready.set()
        await self.over.wait()
        listener.close()

    async def connect(self, client, to_client):
        # The server may still be starting.
        for _ in range(50):
            with contextlib.suppress(ConnectionRefusedError):
                server, to_server = await asyncio.open_connection("127.0.0.1", self.server_port)
                break
            await asyncio.sleep(0.1)
        else:
            return to_client.close()
        asked = asyncio.Queue()
        await asyncio.gather(
            self.forward_requests(client, to_server, asked),
            self.forward_answers(server, to_client, asked),
            return_exceptions=True,
        )
        for writer in (to_client, to_server):
            writer.close()

    async def forward_requests(self, client, to_server, asked):
        try:
            while piece := await client.read(PIECE_BYTES):
                asked.put_nowait(time.monotonic())
                to_server.write(piece)
                await to_server.drain()
        finally:
            to_server.close()

    async def forward_answers(self, server, to_client, asked):
        try:
            while piece := await server.read(PIECE_BYTES):
                if not asked.empty():
                    # A request can arrive in several chunks.
                    self.requests += 1
                    while not asked.empty():
                        last = asked.get_nowait()
                    await asyncio.sleep(max(0, last + self.delay - time.monotonic()))
                to_client.write(piece)
                await to_client.drain()
        finally:
            to_client.close()


if __name__ == "__main__":
    main()
