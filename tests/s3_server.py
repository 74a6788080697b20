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
from xml.sax.saxutils import escape

from moto import backends
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

# For every request moto looks through its own folder.
services = tuple(backends.list_of_moto_modules())
backends.list_of_moto_modules = lambda: services

# An object of a listing takes moto's writer of XML half a millisecond; it writes the rest of a listing.
CONTENT = ("Key", "LastModified", "ETag", "Size", "StorageClass")
serialized = S3Response.serialized


def quickly_serialized(response, action_result):
    listing = action_result.result
    contents = listing.get("Contents") if isinstance(listing, dict) else None
    if response.data.get("Action") != "ListObjectsV2" or not contents or any(tuple(one) != CONTENT for one in contents):
        return serialized(response, action_result)
    listing["Contents"] = []
    status, headers, body = serialized(response, action_result)
    parts = ("".join(f"<{name}>{escape(str(one[name]))}</{name}>" for name in CONTENT) for one in contents)
    written = "".join(f"<Contents>{part}</Contents>" for part in parts)
    before, end, after = body.partition("</IsTruncated>")
    return status, headers, before + end + written + after


S3Response.serialized = quickly_serialized

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
_, port = server.get_host_and_port()
bucket = urllib.request.Request(f"http://127.0.0.1:{port}/lab", method="PUT", headers={"Authorization": "AWS4-HMAC-SHA256 Credential=test/20200101/us-east-1/s3/aws4_request"})
urllib.request.urlopen(bucket).close()
print(port, flush=True)
sys.stdin.buffer.read()
