"""An S3 endpoint for one test: moto, at a port that the system picks.

    python s3_server.py

Prints the port as one line once it serves at 127.0.0.1. It holds one empty bucket, `lab`.
It lives until its stdin closes, so it cannot outlive the process that holds
the other end of that pipe. (The file is not called `moto.py`: Python would
import it in place of the package.)
"""

import logging
import sys
import urllib.request

from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
_, port = server.get_host_and_port()
bucket = urllib.request.Request(f"http://127.0.0.1:{port}/lab", method="PUT", headers={"Authorization": "AWS4-HMAC-SHA256 Credential=test/20200101/us-east-1/s3/aws4_request"})
urllib.request.urlopen(bucket).close()
print(port, flush=True)
sys.stdin.buffer.read()
