"""An S3 endpoint for one test: moto, at a port that the system picks.

    python s3_server.py [FOLDER POLICIES]

Prints the port as one line once it serves at 127.0.0.1. It holds one empty bucket, `lab`.
With arguments it holds a bucket for each folder in FOLDER, with its files, and checks rights:
POLICIES is a JSON file of policies by the names of users. For each user it prints a line more:
the name, the key and the secret.
It lives until its stdin closes, so it cannot outlive the process that holds
the other end of that pipe. (The file is not called `moto.py`: Python would
import it in place of the package.)
"""

import json
import logging
import pathlib
import sys
import urllib.request
from xml.sax.saxutils import escape

from moto import backends, settings
from moto.iam.access_control import IAMRequestBase
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
HEADERS = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=test/20200101/us-east-1/s3/aws4_request",
    "Content-Type": "application/octet-stream",
}


def put(path, data=None):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", data=data, method="PUT", headers=HEADERS)
    urllib.request.urlopen(request).close()


lines = [str(port)]
if len(sys.argv) == 1:
    put("lab")
else:
    folder = pathlib.Path(sys.argv[1])
    for bucket in folder.iterdir():
        put(bucket.name)
        for file in filter(pathlib.Path.is_file, bucket.rglob("*")):
            put(file.relative_to(folder).as_posix(), file.read_bytes())
    iam = backends.get_backend("iam")["123456789012"]["global"]
    for user, policy in json.loads(pathlib.Path(sys.argv[2]).read_text()).items():
        iam.create_user("us-east-1", user)
        iam.put_user_policy(user, "policy", json.dumps(policy))
        key = iam.create_access_key(user)
        lines.append(f"{user} {key.access_key_id} {key.secret_access_key}")
    # From now on each request needs a right. (The server takes the encoding of some queries for another one when it
    # computes signatures.)
    IAMRequestBase.check_signature = lambda request: None
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
print("\n".join(lines), flush=True)
sys.stdin.buffer.read()
