"""Calls the AWS Glue API, as someone else than glueless would.

    python glue_catalog.py OPERATION '{"DatabaseName": …}'

Prints the answer as JSON; that of `get_partitions` is whole. Endpoint and keys come from the environment.
"""

import json
import os
import sys

import boto3

operation, arguments = sys.argv[1], json.loads(sys.argv[2])
glue = boto3.client("glue", region_name=os.environ["AWS_REGION"])
if glue.can_paginate(operation):
    answer = glue.get_paginator(operation).paginate(**arguments).build_full_result()
else:
    answer = getattr(glue, operation)(**arguments)
print(json.dumps(answer, default=str))
