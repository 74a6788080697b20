"""The benchmark's job in other engines: the last change of every live key, as partitioned Parquet.

    python peers.py PEER OPTIONS

PEER is one of the functions below; OPTIONS is JSON: `raw` (the folder of change
files), `table` (the folder to write), `spill` (a folder for temporary data),
`key`, and `columns` (those of the table, without the key and `event_dt`).

The last change is the last one by commit time, file and row. DuckDB can read a
row's file and number. The other engines use `event_id` instead, which has the
same order in the generated changes.
"""

import json
import os
import sys

PARTITIONS = ["event_dt", "cust_loyalty_category"]


def quoted(names, of=""):
    return ", ".join(f'{of}"{name}"' for name in names)


def duckdb_row_number(options):
    """The query that most people write."""
    columns, key = options["columns"], options["key"]
    duckdb_copy(
        options,
        f"""
        SELECT {quoted([key, *columns])}, CAST(event_ts AS DATE) AS event_dt
        FROM (
            SELECT *, row_number() OVER (
                PARTITION BY "{key}"
                ORDER BY "TIMESTAMP" DESC, filename DESC, file_row_number DESC
            ) AS place
            FROM read_parquet($raw, filename = true, file_row_number = true)
        )
        WHERE place = 1 AND Op <> 'D'
        """,
    )


def duckdb_lead(options):
    """The history: the last change of each key and commit time, up to the next one."""
    columns, key = options["columns"], options["key"]
    duckdb_copy(
        options,
        f"""
        SELECT {quoted([key, *columns])}, CAST(event_ts AS DATE) AS event_dt, valid_from, valid_to,
            valid_to IS NULL AS is_current
        FROM (
            SELECT *, CAST("TIMESTAMP" AS TIMESTAMP) AS valid_from, lead(CAST("TIMESTAMP" AS TIMESTAMP)) OVER (
                PARTITION BY "{key}" ORDER BY "TIMESTAMP"
            ) AS valid_to
            FROM (
                SELECT *, row_number() OVER (
                    PARTITION BY "{key}", "TIMESTAMP"
                    ORDER BY filename DESC, file_row_number DESC
                ) AS place
                FROM read_parquet($raw, filename = true, file_row_number = true)
            )
            WHERE place = 1
        )
        WHERE Op <> 'D'
        """,
    )


def duckdb_arg_max(options):
    """An aggregate instead: commit time, file and row are packed into one number, 40 bits for file
    and row, and the payload is one struct. The fastest form we found that keeps nulls and respects
    file and row."""
    columns, key = options["columns"], options["key"]
    duckdb_copy(
        options,
        f"""
        SELECT "{key}", {quoted(columns, "last.")}, CAST(last.event_ts AS DATE) AS event_dt
        FROM (
            SELECT "{key}", arg_max(
                struct_pack(Op, {quoted(columns)}),
                epoch_us(CAST("TIMESTAMP" AS TIMESTAMP)) * CAST(1099511627776 AS HUGEINT)
                    + file_index * 16777216 + file_row_number
            ) AS last
            FROM read_parquet($raw, file_row_number = true)
            GROUP BY "{key}"
        )
        WHERE last.Op <> 'D'
        """,
    )


def duckdb_copy(options, query):
    import duckdb

    connection = duckdb.connect(config={"temp_directory": options["spill"]})
    connection.execute("SET preserve_insertion_order = false")
    connection.execute(
        f"""
        COPY ({query}) TO '{options["table"]}' (
            FORMAT parquet, COMPRESSION snappy, PARTITION_BY ({", ".join(PARTITIONS)})
        )
        """,
        {"raw": f"{options['raw']}/*.parquet"},
    )


def polars_streaming(options):
    """The streaming engine: the last row of each key, then only these rows."""
    import polars

    key = options["key"]
    changes = polars.scan_parquet(f"{options['raw']}/*.parquet")
    order = polars.struct("TIMESTAMP", "event_id")
    last = changes.group_by(key).agg(polars.col("event_id").max_by(order))
    rows = (
        changes.join(last.select("event_id"), on="event_id", how="semi")
        .filter(polars.col("Op") != "D")
        .with_columns(event_dt=polars.col("event_ts").dt.date())
        .select(key, *options["columns"], "event_dt")
    )
    rows.sink_parquet(
        polars.PartitionBy(options["table"], key=PARTITIONS, include_key=False),
        compression="snappy",
        mkdir=True,
        engine="streaming",
    )


def datafusion_row_number(options):
    """The engine that glueless is built on, with the usual query."""
    import datafusion

    config = datafusion.SessionConfig().with_target_partitions(os.cpu_count())
    runtime = datafusion.RuntimeEnvBuilder().with_disk_manager_specified(options["spill"])
    context = datafusion.SessionContext(config, runtime)
    context.register_parquet("changes", options["raw"])
    key, columns = options["key"], options["columns"]
    context.sql(
        f"""
        COPY (
            SELECT {quoted([key, *columns])}, CAST(event_ts AS DATE) AS event_dt
            FROM (
                SELECT *, row_number() OVER (
                    PARTITION BY "{key}" ORDER BY "TIMESTAMP" DESC, event_id DESC
                ) AS place
                FROM changes
            )
            WHERE place = 1 AND "Op" <> 'D'
        ) TO '{options["table"]}/' STORED AS PARQUET PARTITIONED BY ({", ".join(PARTITIONS)})
        OPTIONS ('format.compression' 'snappy')
        """
    ).collect()


def pyspark_row_number(options):
    """The query of the Glue job, on this machine's processors."""
    from pyspark.sql import SparkSession, Window
    from pyspark.sql import functions as F

    spark = (
        SparkSession.builder.master(f"local[{os.cpu_count()}]")
        .config("spark.driver.memory", "8g")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.local.dir", options["spill"])
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.shuffle.partitions", 2 * os.cpu_count())
        .config("spark.sql.sources.partitionOverwriteMode", "dynamic")
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )
    newest_first = Window.partitionBy(options["key"]).orderBy(
        F.col("TIMESTAMP").desc(), F.col("event_id").desc()
    )
    (
        spark.read.parquet(options["raw"])
        .withColumn("place", F.row_number().over(newest_first))
        .where("place = 1 AND Op <> 'D'")
        .select(options["key"], *options["columns"], F.to_date("event_ts").alias("event_dt"))
        .write.mode("overwrite")
        .option("compression", "snappy")
        .partitionBy(*PARTITIONS)
        .parquet(options["table"])
    )
    spark.stop()


if __name__ == "__main__":
    globals()[sys.argv[1]](json.loads(sys.argv[2]))
