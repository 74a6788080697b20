"""Reads a table with an engine that is not ours.

    python readers.py duckdb|polars|polars-delta|deltalake PATH [VERSION]

PATH is the table's folder; Polars also takes `s3://bucket/prefix`, with the
endpoint in AWS_ENDPOINT_URL and the credentials in the usual AWS_* variables.
Every `*.parquet` file below PATH is read, with the partition columns taken
from the path and typed by the engine. The last two read a Delta table, its
last version or the one that is named.

Prints one line of JSON:

    {"columns": [["cust_id", "VARCHAR"], ...], "rows": [["Cust100", null], ...]}

Columns are the files' own, then the partition columns in the order of the
path. Types are the engine's own names. Values are text, the same for both engines:
`2019-04-01 10:10:00` without the zeros that end a fraction, a time with a zone
in UTC and with `+00` after it, `true` and `false`, bytes in hexadecimal. Rows
are sorted, null first. A table without files has no columns and no rows.
"""

import datetime
import decimal
import glob
import json
import os
import sys


def read_with_duckdb(path):
    import duckdb

    files = parquet_files(path)
    if not files:
        return [], []
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    table = connection.read_parquet(files, hive_partitioning=True)
    types = dict(zip(table.columns, map(str, table.types)))
    folders = os.path.relpath(files[0], path).split(os.sep)[:-1]
    partitions = [folder.split("=")[0] for folder in folders if "=" in folder]
    names = [name for name in table.columns if name not in partitions] + partitions
    columns = [(name, types[name]) for name in names]
    values = []
    for name, kind in columns:
        quoted = '"' + name.replace('"', '""') + '"'
        values.append(f"lower(hex({quoted}))" if kind == "BLOB" else f"CAST({quoted} AS VARCHAR)")
    return columns, table.project(", ".join(values)).fetchall()


def read_with_polars(path):
    import polars

    if path.startswith("s3://"):
        endpoint = os.environ["AWS_ENDPOINT_URL"]
        options = {"aws_endpoint_url": endpoint, "aws_allow_http": "true"}
        source = path.rstrip("/") + "/**/*.parquet"
    else:
        options = None
        source = parquet_files(path)
        if not source:
            return [], []
    try:
        table = polars.scan_parquet(source, hive_partitioning=True, storage_options=options).collect()
    except polars.exceptions.ComputeError as error:
        if "expanded paths were empty" in str(error):
            return [], []
        raise
    columns = [(name, str(kind)) for name, kind in table.schema.items()]
    return columns, [[as_text(value) for value in row] for row in table.rows()]


def read_with_polars_delta(path, version=None):
    import polars

    options = {"AWS_ALLOW_HTTP": "true"} if path.startswith("s3://") else None
    table = polars.read_delta(path, version=version, storage_options=options)
    columns = [(name, str(kind)) for name, kind in table.schema.items()]
    return columns, [[as_text(value) for value in row] for row in table.rows()]


def read_with_deltalake(path, version=None):
    import deltalake
    import polars

    options = {"AWS_ALLOW_HTTP": "true"} if path.startswith("s3://") else None
    opened = deltalake.DeltaTable(path, version=version, storage_options=options)
    query = deltalake.QueryBuilder().register("t", opened).execute("SELECT * FROM t")
    columns = [(field.name, str(field.type.type)) for field in opened.schema().fields]
    table = polars.DataFrame(query.read_all()).select([name for name, _ in columns])
    return columns, [[as_text(value) for value in row] for row in table.rows()]


def parquet_files(path):
    pattern = os.path.join(glob.escape(path), "**", "*.parquet")
    return sorted(glob.glob(pattern, recursive=True))


def as_text(value):
    """A Polars value as DuckDB casts it to text."""
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime.datetime):
        zone = ""
        if value.tzinfo is not None:
            value = value.astimezone(datetime.timezone.utc).replace(tzinfo=None)
            zone = "+00"
        text = value.isoformat(sep=" ")
        return (text.rstrip("0") if "." in text else text) + zone
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    return str(value)


READERS = {
    "duckdb": read_with_duckdb,
    "polars": read_with_polars,
    "polars-delta": read_with_polars_delta,
    "deltalake": read_with_deltalake,
}


def main(arguments):
    if len(arguments) not in (2, 3) or arguments[0] not in READERS:
        sys.exit(__doc__)
    engine, path, *version = arguments
    columns, rows = READERS[engine](path, *map(int, version))
    rows = sorted(rows, key=lambda row: [(value is not None, value or "") for value in row])
    json.dump({"columns": columns, "rows": rows}, sys.stdout)
    print()


if __name__ == "__main__":
    main(sys.argv[1:])
