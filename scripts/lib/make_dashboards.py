#!/usr/bin/env python3
"""Writes the Grafana dashboards of deploy/monitoring. With --check it writes nothing and fails if they differ.

A panel is a line here: kind, title, unit, width, and its queries as legend and expression. `@` in an expression stands
for the matchers of the dashboard's variables, `@c` for that of the cluster alone (recorded series have no job).
"""

import json
import pathlib
import sys

DASHBOARDS = pathlib.Path(__file__).resolve().parents[2] / "deploy/monitoring/grafana/dashboards"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
HEIGHTS = {"stat": 4, "timeseries": 7, "table": 8}


def row(title):
    return {"kind": "row", "title": title}


def panel(kind, title, unit, width, *queries, **extra):
    return {"kind": kind, "title": title, "unit": unit, "width": width, "queries": queries, **extra}


def stat(title, unit, width, *queries, **extra):
    return panel("stat", title, unit, width, *queries, **extra)


def graph(title, unit, width, *queries, **extra):
    return panel("timeseries", title, unit, width, *queries, **extra)


def table(title, width, *queries, **extra):
    """Each query is a column: its name, its unit, its expression."""
    return panel("table", title, "short", width, *queries, **extra)


def ratio(of, by, over, legend):
    """The mean of a counter of seconds for each event that another one counts."""
    return (legend, f"sum by ({by}) (rate({of}[$__rate_interval])) / sum by ({by}) (rate({over}[$__rate_interval]))")


def rate(legend, metric, by="instance"):
    return (legend, f"sum by ({by}) (rate({metric}[$__rate_interval]))")


def quantile(q, metric):
    return (f"{q:g}", f"histogram_quantile({q:g}, sum by (le) (rate({metric}_bucket{{@}}[$__rate_interval])))")


def checkpoints(legend, now, before, scaled=""):
    """The view has another name since PostgreSQL 17, and its counters had none of their own in postgres_exporter 0.11."""
    names = (f"pg_stat_checkpointer_{now}", f"pg_stat_bgwriter_{before}_total", f"pg_stat_bgwriter_{before}")
    return (legend, " or ".join(f"rate({name}{{@}}[$__rate_interval]){scaled}" for name in names))


GREEN_IF_ZERO = [("green", None), ("red", 1)]
RED_IF_ZERO = [("red", None), ("green", 1)]
NAME = "{{instance}}"

CLUSTER = [
    row("Servers"),
    stat("PostgreSQL runs", "bool_yes_no", 5, (NAME, "pg_up{@}"), steps=RED_IF_ZERO),
    stat("Is a standby", "bool_yes_no", 5, (NAME, "pg_replication_is_replica{@} or pg_replication_lag{@} > bool 0")),
    stat("Started", "s", 5, (NAME, "time() - pg_postmaster_start_time_seconds{@}")),
    stat("Size of all databases", "bytes", 5, (NAME, "sum by (instance) (pg_database_size_bytes{@})")),
    stat("Alerts", "short", 4, ("firing", 'count(ALERTS{@c,alertstate="firing"}) or vector(0)'), steps=GREEN_IF_ZERO),
    row("Replication"),
    graph("Lag of replay", "s", 8, (NAME, "pg_replication_lag_seconds{@} or pg_replication_lag{@}")),
    graph("Standbys behind the primary", "bytes", 8, ("{{application_name}}", "pg_stat_replication_pg_wal_lsn_diff{@}")),
    graph("Lag as the primary sees it", "s", 8,
          ("{{application_name}} write", "walship_pg_replication_write_lag_seconds{@}"),
          ("{{application_name}} flush", "walship_pg_replication_flush_lag_seconds{@}"),
          ("{{application_name}} replay", "walship_pg_replication_replay_lag_seconds{@}")),
    graph("Time since the last replayed transaction", "s", 8, (NAME, "pg_replication_last_replay_seconds{@}")),
    graph("WAL that slots hold", "bytes", 8, ("{{slot_name}}", "pg_replication_slots_pg_wal_lsn_diff{@}")),
    graph("WAL until a slot loses its own", "bytes", 8,
          ("{{slot_name}}", "pg_replication_slots_safe_wal_size_bytes{@} or pg_replication_slot_safe_wal_size_bytes{@}")),
    graph("Standbys that stream", "short", 8,
          ("there are", "cluster:pg_standbys:count{@c}"), ("stream", "cluster:pg_standbys_streaming:count{@c} or 0 * cluster:pg_standbys:count{@c}")),
    graph("Slots in use", "bool_yes_no", 8,
          ("{{slot_name}}", "pg_replication_slots_slot_is_active{@} or pg_replication_slot_slot_is_active{@} or pg_replication_slots_active{@}")),
    graph("State of slots", "short", 8,
          ("{{slot_name}} {{wal_status}}", "pg_replication_slots_wal_status{@} or pg_replication_slot_wal_status{@}")),
    row("WAL"),
    graph("WAL written", "Bps", 8,
          (NAME, "max by (instance) (rate(walship_pg_wal_lsn_bytes{@}[$__rate_interval]))"
                 " or max by (instance) (rate(pg_stat_replication_pg_current_wal_lsn_bytes{@}[$__rate_interval]))"
                 " or max by (instance) (rate(pg_replication_slots_slot_current_wal_lsn{@}[$__rate_interval]))")),
    graph("pg_wal", "bytes", 8, (NAME, "pg_wal_size_bytes{@}")),
    graph("Segments in pg_wal", "short", 8, (NAME, "pg_wal_segments{@}")),
    graph("Free space of the disk with pg_wal", "percentunit", 8, (NAME, "instance:pg_wal_disk_avail:ratio{@c}")),
    graph("Archiver", "ops", 8,
          rate("{{instance}} archived", "pg_stat_archiver_archived_count{@}"),
          rate("{{instance}} failed", "pg_stat_archiver_failed_count{@}")),
    graph("Time since the archiver's last file", "s", 8, (NAME, "pg_stat_archiver_last_archive_age{@}")),
    graph("Checkpoints", "ops", 12,
          checkpoints("{{instance}} timed", "num_timed_total", "checkpoints_timed"),
          checkpoints("{{instance}} requested", "num_requested_total", "checkpoints_req")),
    # The counters are milliseconds.
    graph("Checkpoints write", "percentunit", 12, checkpoints(NAME, "write_time_total", "checkpoint_write_time", " / 1000")),
    row("Connections and queries"),
    graph("Connections", "short", 8,
          ("{{instance}} {{state}}", "sum by (instance, state) (pg_stat_activity_count{@})"),
          ("{{instance}} limit", "pg_settings_max_connections{@} - pg_settings_superuser_reserved_connections{@}")),
    graph("Connections in use", "percentunit", 8, (NAME, "instance:pg_connections:ratio{@c}")),
    graph("Connections by database", "short", 8,
          ("{{instance}} {{datname}}", 'pg_stat_database_numbackends{@,datname!=""}')),
    graph("Longest transaction", "s", 8,
          ("{{instance}} {{datname}}", "max by (instance, datname) (pg_stat_activity_max_tx_duration{@})")),
    graph("Longest query", "s", 8, ("{{instance}} {{datname}}", "walship_pg_longest_query_seconds{@}")),
    graph("Slow queries", "short", 8, ("{{instance}} {{datname}}", "walship_pg_slow_queries{@}")),
    graph("Open transactions", "short", 8, (NAME, "pg_long_running_transactions{@}")),
    graph("Oldest open transaction", "s", 8,
          (NAME, "pg_long_running_transactions_oldest_timestamp_seconds{@}")),
    graph("Locks", "short", 8, ("{{instance}} {{mode}}", "sum by (instance, mode) (pg_locks_count{@})")),
    graph("Top queries", "percentunit", 12,
          ("{{datname}} {{queryid}}", "topk(10, sum by (datname, queryid) (rate(pg_stat_statements_seconds_total{@}[$__rate_interval])"
                                      " or rate(pg_stat_statements_total_time_seconds{@}[$__rate_interval])))")),
    graph("Mean time of a query", "s", 12,
          (NAME, "sum by (instance) (rate(pg_stat_statements_seconds_total{@}[$__rate_interval])"
                 " or rate(pg_stat_statements_total_time_seconds{@}[$__rate_interval]))"
                 " / sum by (instance) (rate(pg_stat_statements_calls_total{@}[$__rate_interval])"
                 " or rate(pg_stat_statements_calls{@}[$__rate_interval]))")),
    graph("Queries", "ops", 8,
          (NAME, "sum by (instance) (rate(pg_stat_statements_calls_total{@}[$__rate_interval])"
                 " or rate(pg_stat_statements_calls{@}[$__rate_interval]))")),
    graph("Rows of queries", "ops", 8,
          (NAME, "sum by (instance) (rate(pg_stat_statements_rows_total{@}[$__rate_interval])"
                 " or rate(pg_stat_statements_rows{@}[$__rate_interval]))")),
    graph("Transactions", "ops", 8,
          rate("{{instance}} commit", "pg_stat_database_xact_commit{@}"),
          rate("{{instance}} rollback", "pg_stat_database_xact_rollback{@}")),
    row("Databases"),
    graph("Size", "bytes", 8, ("{{instance}} {{datname}}", "pg_database_size_bytes{@}")),
    graph("Blocks found in memory", "percentunit", 8,
          (NAME, "sum by (instance) (rate(pg_stat_database_blks_hit{@}[$__rate_interval]))"
                 " / (sum by (instance) (rate(pg_stat_database_blks_hit{@}[$__rate_interval]))"
                 " + sum by (instance) (rate(pg_stat_database_blks_read{@}[$__rate_interval])))")),
    graph("Rows read", "ops", 8,
          rate("{{instance}} returned", "pg_stat_database_tup_returned{@}"),
          rate("{{instance}} fetched", "pg_stat_database_tup_fetched{@}")),
    graph("Rows written", "ops", 8,
          rate("{{instance}} inserted", "pg_stat_database_tup_inserted{@}"),
          rate("{{instance}} updated", "pg_stat_database_tup_updated{@}"),
          rate("{{instance}} deleted", "pg_stat_database_tup_deleted{@}")),
    graph("Deadlocks and conflicts", "ops", 8,
          rate("{{instance}} deadlocks", "pg_stat_database_deadlocks{@}"),
          rate("{{instance}} conflicts", "pg_stat_database_conflicts{@}")),
    graph("Temporary files", "Bps", 4, rate(NAME, "pg_stat_database_temp_bytes{@}")),
    graph("Number of temporary files", "ops", 4, rate(NAME, "pg_stat_database_temp_files{@}")),
    row("Hosts"),
    graph("CPU in use", "percentunit", 8,
          (NAME, '1 - avg by (instance) (rate(node_cpu_seconds_total{@,mode="idle"}[$__rate_interval]))')),
    graph("Load", "short", 8, (NAME, "node_load1{@}")),
    graph("Memory available", "percentunit", 8,
          (NAME, "node_memory_MemAvailable_bytes{@} / node_memory_MemTotal_bytes{@}")),
    graph("Free space", "percentunit", 8,
          ("{{instance}} {{mountpoint}}", 'node_filesystem_avail_bytes{@,fstype!~"tmpfs|overlay|ramfs|squashfs"}'
                                          ' / node_filesystem_size_bytes{@,fstype!~"tmpfs|overlay|ramfs|squashfs"}')),
    graph("Disks busy", "percentunit", 8,
          ("{{instance}} {{device}}", "rate(node_disk_io_time_seconds_total{@}[$__rate_interval])")),
    graph("Network", "Bps", 4,
          ("{{instance}} in", 'sum by (instance) (rate(node_network_receive_bytes_total{@,device!="lo"}[$__rate_interval]))'),
          ("{{instance}} out", 'sum by (instance) (rate(node_network_transmit_bytes_total{@,device!="lo"}[$__rate_interval]))')),
    graph("Clock", "s", 4,
          ("{{instance}} off", "node_timex_offset_seconds{@}"),
          ("{{instance}} at most", "node_timex_maxerror_seconds{@}")),
]

ARCHIVE = [
    row("What can be recovered"),
    stat("From", "dateTimeAsIso", 5, ("{{archive}}", "max by (archive) (walship_recoverable_start_timestamp_seconds{@}) * 1000")),
    stat("To", "dateTimeAsIso", 5, ("{{archive}}", "max by (archive) (walship_recoverable_end_timestamp_seconds{@}) * 1000")),
    stat("Window", "s", 4, ("{{archive}}", "max by (archive) (walship_recoverable_end_timestamp_seconds{@}"
                                           " - walship_recoverable_start_timestamp_seconds{@})")),
    stat("Gaps in the WAL", "short", 3, ("{{archive}}", "max by (archive) (walship_wal_gaps{@})"), steps=GREEN_IF_ZERO),
    stat("Archive was seen", "s", 4, (NAME, "time() - walship_status_timestamp_seconds{@}")),
    stat("Looking succeeds", "bool_yes_no", 3, (NAME, "walship_status_success{@}"), steps=RED_IF_ZERO),
    row("WAL"),
    stat("Last WAL stored", "s", 6, ("{{archive}}", "time() - max by (archive) (walship_archive_last_segment_timestamp_seconds{@})")),
    graph("Files that wait", "short", 6, (NAME, "walship_archive_ready_files{@}")),
    graph("The oldest waits for", "s", 6, (NAME, "walship_archive_oldest_ready_seconds{@}")),
    graph("Free space", "percentunit", 6,
          ("{{instance}} {{directory}}", "walship_filesystem_avail_bytes{@} / walship_filesystem_size_bytes{@}")),
    row("Backups"),
    stat("Newest backup", "s", 5, ("{{archive}}", "time() - max by (archive) (walship_backup_last_success_timestamp_seconds{@})")),
    stat("Overdue after", "s", 4, ("{{archive}}", "2 * archive:backup_interval_seconds:max{@c}")),
    graph("Number of backups", "short", 5, ("{{state}}", "max by (archive, state) (walship_backups{@})")),
    graph("Stored", "bytes", 5,
          ("all", "max by (archive) (walship_backups_stored_bytes{@})"),
          ("newest", "max by (archive) (walship_backup_stored_bytes{@})")),
    graph("The next expiry deletes", "short", 5,
          ("backups", "max by (archive) (walship_expire_deletable_backups{@})"),
          ("segments", "max by (archive) (walship_expire_deletable_segments{@})")),
    row("Proof"),
    stat("Last verification", "s", 4, ("{{archive}}", "time() - max by (archive) (walship_verify_last_timestamp_seconds{@})")),
    stat("Last clean one", "s", 4, ("{{archive}}", "time() - max by (archive) (walship_verify_last_clean_timestamp_seconds{@})")),
    stat("Findings", "short", 3, ("{{archive}}", "max by (archive) (walship_verify_findings{@})"), steps=GREEN_IF_ZERO),
    stat("Last drill", "s", 4, ("{{archive}}", "time() - max by (archive) (walship_drill_last_timestamp_seconds{@})")),
    stat("It passed", "bool_yes_no", 3, ("{{archive}}", "min by (archive) (walship_drill_last_success{@})"), steps=RED_IF_ZERO),
    stat("Recovery time (RTO)", "s", 3, ("{{archive}}", "max by (archive) (walship_drill_recovery_seconds{@})")),
    stat("Data loss (RPO)", "s", 3, ("{{archive}}", "max by (archive) (walship_drill_data_loss_seconds{@})")),
    row("Warnings and checks"),
    graph("Warnings of status", "short", 8, ("{{check}} {{level}}", "max by (check, level) (walship_warnings{@}) or vector(0)")),
    graph("Checks of doctor", "short", 8, ("{{instance}} {{level}}", "sum by (instance, level) (walship_doctor_check{@})")),
    stat("Doctor looked", "s", 8, (NAME, "time() - walship_doctor_timestamp_seconds{@}")),
    row("Archiving and recovery"),
    graph("Time of a push", "s", 8, quantile(0.5, "walship_push_duration_seconds"), quantile(0.99, "walship_push_duration_seconds")),
    graph("Pushes", "ops", 8, rate(NAME, "walship_push_duration_seconds_count{@}")),
    graph("Pushes that failed", "ops", 8,
          ("{{kind}}", "sum by (kind) (rate(walship_push_failures_total{@}[$__rate_interval])) or vector(0)")),
    graph("Time of a restore", "s", 8, quantile(0.5, "walship_restore_duration_seconds"), quantile(0.99, "walship_restore_duration_seconds")),
    graph("Restores", "ops", 8, rate(NAME, "walship_restore_duration_seconds_count{@}")),
    graph("Restores that failed", "ops", 8,
          ("{{kind}}", "sum by (kind) (rate(walship_restore_failures_total{@}[$__rate_interval])) or vector(0)")),
    graph("Requests to the store", "ops", 12,
          rate("{{operation}} {{outcome}}", "walship_store_requests_total{@}", "operation, outcome")),
    graph("Time of a request", "s", 12,
          ratio("walship_store_request_duration_seconds_sum{@}", "operation",
                "walship_store_request_duration_seconds_count{@}", "{{operation}}")),
    row("Schedule"),
    table("Jobs", 24,
          ("Next run in", "s", "max by (archive, command) (walship_schedule_next_timestamp_seconds{@}) - time()"),
          ("Runs", "bool_yes_no", "max by (archive, command) (walship_schedule_running{@})"),
          ("Started", "s", "time() - max by (archive, command) (walship_schedule_last_start_timestamp_seconds{@})"),
          ("Ended", "s", "time() - max by (archive, command) (walship_schedule_last_end_timestamp_seconds{@})"),
          ("Succeeded", "s", "time() - max by (archive, command) (walship_schedule_last_success_timestamp_seconds{@})"),
          ("Exit code", "short", "max by (archive, command) (walship_schedule_last_exit_code{@})"),
          ("Longest time between two", "s", "max by (archive, command) (walship_schedule_interval_seconds{@})")),
    row("The agent"),
    graph("CPU", "percentunit", 5, (NAME, 'rate(process_cpu_seconds_total{@c,job="walship"}[$__rate_interval])')),
    graph("Memory", "bytes", 5, (NAME, 'process_resident_memory_bytes{@c,job="walship"}')),
    graph("Open files", "short", 5, (NAME, 'process_open_fds{@c,job="walship"}')),
    stat("Running for", "s", 4, (NAME, 'time() - process_start_time_seconds{@c,job="walship"}')),
    stat("Version", "short", 5, ("{{instance}} {{version}}, PostgreSQL {{postgres_major}}, timeline {{timeline}}", "walship_info{@}")),
]

POOL = "{{database}} {{user}}"
PGBOUNCER = [
    row("Now"),
    stat("PgBouncer answers", "bool_yes_no", 6, (NAME, "pgbouncer_up{@}"), steps=RED_IF_ZERO),
    stat("Version", "short", 6, ("{{version}}", "pgbouncer_version_info{@}")),
    stat("Clients that wait", "short", 6, (NAME, "sum by (instance) (pgbouncer_pools_client_waiting_connections{@})"),
         steps=GREEN_IF_ZERO),
    stat("Client connections in use", "percentunit", 6, (NAME, "pgbouncer_used_clients{@} / pgbouncer_config_max_client_connections{@}")),
    row("Clients"),
    graph("Clients in a transaction", "short", 8,
          (POOL, "pgbouncer_pools_client_active_connections{@} or pgbouncer_active_clients{@}")),
    graph("Clients that wait for a server", "short", 8,
          (POOL, "pgbouncer_pools_client_waiting_connections{@} or pgbouncer_waiting_clients{@}")),
    graph("The first has waited for", "s", 8, (POOL, "pgbouncer_pools_client_maxwait_seconds{@}")),
    row("Servers"),
    graph("Active", "short", 8, (POOL, "pgbouncer_pools_server_active_connections{@}")),
    graph("Idle", "short", 4, (POOL, "pgbouncer_pools_server_idle_connections{@}")),
    graph("Used", "short", 4, (POOL, "pgbouncer_pools_server_used_connections{@}")),
    graph("Tested", "short", 4, (POOL, "pgbouncer_pools_server_testing_connections{@}")),
    graph("Log in", "short", 4, (POOL, "pgbouncer_pools_server_login_connections{@}")),
    graph("Pools in use", "percentunit", 8, ("{{name}}", "pgbouncer_databases_current_connections{@} / pgbouncer_databases_pool_size{@}")),
    graph("Size of pools", "short", 8,
          ("{{name}}", "pgbouncer_databases_pool_size{@}"), ("{{name}} reserve", "pgbouncer_databases_reserve_pool{@}")),
    graph("Paused or disabled", "bool_yes_no", 8,
          ("{{name}} paused", "pgbouncer_databases_paused{@}"), ("{{name}} disabled", "pgbouncer_databases_disabled{@}")),
    row("Work"),
    graph("Queries", "ops", 8, rate("{{database}}", "pgbouncer_stats_queries_pooled_total{@}", "database")),
    graph("Transactions", "ops", 8, rate("{{database}}", "pgbouncer_stats_sql_transactions_pooled_total{@}", "database")),
    graph("Bytes", "Bps", 8,
          rate("{{database}} from clients", "pgbouncer_stats_received_bytes_total{@}", "database"),
          rate("{{database}} to clients", "pgbouncer_stats_sent_bytes_total{@}", "database")),
    graph("Mean time of a query", "s", 8,
          ratio("pgbouncer_stats_queries_duration_seconds_total{@}", "database", "pgbouncer_stats_queries_pooled_total{@}", "{{database}}")),
    graph("Mean time of a transaction", "s", 8,
          ratio("pgbouncer_stats_server_in_transaction_seconds_total{@}", "database",
                "pgbouncer_stats_sql_transactions_pooled_total{@}", "{{database}}")),
    graph("Mean wait for a server", "s", 8,
          ratio("pgbouncer_stats_client_wait_seconds_total{@}", "database", "pgbouncer_stats_sql_transactions_pooled_total{@}", "{{database}}")),
    row("PgBouncer itself"),
    graph("Errors in its log", "ops", 8, rate("{{kind}}", "walship_pgbouncer_log_errors_total{@}", "kind")),
    graph("Its lists", "short", 8,
          ("databases", "pgbouncer_databases{@}"), ("users", "pgbouncer_users{@}"), ("pools", "pgbouncer_pools{@}"),
          ("used clients", "pgbouncer_used_clients{@}"), ("free clients", "pgbouncer_free_clients{@}"),
          ("clients that log in", "pgbouncer_login_clients{@}"),
          ("used servers", "pgbouncer_used_servers{@}"), ("free servers", "pgbouncer_free_servers{@}")),
    graph("Its limits", "short", 8,
          ("clients", "pgbouncer_config_max_client_connections{@}"),
          ("connections of a user, 0 is none", "pgbouncer_config_max_user_connections{@}"),
          ("connections to {{name}}, 0 is none", "pgbouncer_databases_max_connections{@}")),
]

FLEET = [
    row("All archives"),
    stat("Archives", "short", 6, ("archives", "count(count by (archive) (walship_status_success{@a}))")),
    stat("With a gap", "short", 6, ("archives", "count(max by (archive) (walship_wal_gaps{@a}) > 0) or vector(0)"), steps=GREEN_IF_ZERO),
    stat("Without a backup of the last interval", "short", 6,
         ("archives", "count(time() - max by (cluster, archive) (walship_backup_last_success_timestamp_seconds{@a})"
                      " > archive:backup_interval_seconds:max{@c}) or vector(0)"), steps=GREEN_IF_ZERO),
    stat("Alerts", "short", 6, ("firing", 'count(ALERTS{@c,alertstate="firing"}) or vector(0)'), steps=GREEN_IF_ZERO),
    table("Archives, one a row", 24,
          ("Seen", "s", "time() - max by (cluster, archive) (walship_status_timestamp_seconds{@a})"),
          ("Window", "s", "max by (cluster, archive) (walship_recoverable_end_timestamp_seconds{@a}"
                          " - walship_recoverable_start_timestamp_seconds{@a})"),
          ("Last WAL", "s", "time() - max by (cluster, archive) (walship_archive_last_segment_timestamp_seconds{@a})"),
          ("Gaps", "short", "max by (cluster, archive) (walship_wal_gaps{@a})"),
          ("Newest backup", "s", "time() - max by (cluster, archive) (walship_backup_last_success_timestamp_seconds{@a})"),
          ("Backups", "short", 'max by (cluster, archive) (walship_backups{@a,state="restorable"})'),
          ("Stored", "bytes", "max by (cluster, archive) (walship_backups_stored_bytes{@a})"),
          ("Clean", "s", "time() - max by (cluster, archive) (walship_verify_last_clean_timestamp_seconds{@a})"),
          ("Findings", "short", "max by (cluster, archive) (walship_verify_findings{@a})"),
          ("Drill passed", "bool_yes_no", "min by (cluster, archive) (walship_drill_last_success{@a})"),
          ("Recovery time", "s", "max by (cluster, archive) (walship_drill_recovery_seconds{@a})"), height=10),
    row("Over time"),
    graph("Newest backup", "s", 8, ("{{archive}}", "time() - max by (archive) (walship_backup_last_success_timestamp_seconds{@a})")),
    graph("Files that wait", "short", 8, ("{{archive}}", "max by (archive) (walship_archive_ready_files{@a})")),
    graph("Stored", "bytes", 8, ("{{archive}}", "max by (archive) (walship_backups_stored_bytes{@a})")),
    graph("Recovery time of the last drill", "s", 8, ("{{archive}}", "max by (archive) (walship_drill_recovery_seconds{@a})")),
    graph("Data loss of the last drill", "s", 8, ("{{archive}}", "max by (archive) (walship_drill_data_loss_seconds{@a})")),
    graph("Alerts by severity", "short", 8, ("{{cluster}} {{severity}}", 'count by (cluster, severity) (ALERTS{@c,alertstate="firing"}) or vector(0)')),
    row("Versions"),
    table("walship and PostgreSQL", 24,
          ("Agents", "short", "count by (cluster, archive, version, postgres_major, timeline) (walship_info{@a})")),
]


def query_variable(name, query, many):
    variable = {"name": name, "label": name.capitalize(), "type": "query", "datasource": DATASOURCE,
                "query": {"query": query, "refId": name}, "refresh": 2, "sort": 1, "multi": many, "includeAll": many}
    if many:
        variable |= {"allValue": ".+", "current": {"text": "All", "value": "$__all"}}
    return variable


def variables(fleet):
    yield {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}}
    yield query_variable("cluster", "label_values(up, cluster)", many=fleet)
    yield query_variable("job", 'label_values(up{cluster=~"$cluster"}, job)', many=True)
    if fleet:
        yield query_variable("archive", 'label_values(walship_status_success{cluster=~"$cluster"}, archive)', many=True)


def expression(text):
    cluster = 'cluster=~"$cluster"'
    job = cluster + ',job=~"$job"'
    for name, matchers in (("{@a", job + ',archive=~"$archive"'), ("{@c", cluster), ("{@", job)):
        text = text.replace(name, "{" + matchers)
    return text


def target(kind, number, query):
    made = {"refId": chr(ord("A") + number), "datasource": DATASOURCE, "expr": expression(query[-1])}
    if kind == "timeseries":
        return made | {"legendFormat": query[0]}
    if kind == "stat":
        return made | {"legendFormat": query[0], "instant": True}
    return made | {"instant": True, "format": "table"}


def columns(queries):
    """A table's columns: what the queries are called, each with its unit, without the time."""
    names = {f"Value #{chr(ord('A') + n)}": query[0] for n, query in enumerate(queries)}
    names["command"] = "job"
    if len(queries) == 1:
        names["Value"] = queries[0][0]
    units = [{"matcher": {"id": "byName", "options": query[0]}, "properties": [{"id": "unit", "value": query[1]}]} for query in queries]
    steps = [{"id": "merge", "options": {}},
             {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": names}}]
    return units, steps


def grafana_panel(spec, number, grid):
    kind = spec["kind"]
    made = {"id": number, "type": kind, "title": spec["title"], "gridPos": grid}
    if kind == "row":
        return made | {"collapsed": False, "panels": []}
    defaults = {"unit": spec["unit"]}
    if "steps" in spec:
        defaults["thresholds"] = {"mode": "absolute", "steps": [{"color": c, "value": v} for c, v in spec["steps"]]}
    made |= {"datasource": DATASOURCE, "fieldConfig": {"defaults": defaults, "overrides": []},
             "targets": [target(kind, n, query) for n, query in enumerate(spec["queries"])]}
    if kind == "table":
        made["fieldConfig"]["overrides"], made["transformations"] = columns(spec["queries"])
    elif kind == "stat":
        made["options"] = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "textMode": "value_and_name"}
        if "steps" not in spec:
            made["options"]["colorMode"] = "none"
    else:
        made["fieldConfig"]["defaults"]["custom"] = {"fillOpacity": 10, "showPoints": "never"}
        if spec["unit"] == "percentunit":
            made["fieldConfig"]["defaults"]["min"] = 0
        made["options"] = {"tooltip": {"mode": "multi"}, "legend": {"displayMode": "list", "placement": "bottom"}}
    return made


def laid_out(specs):
    """From left to right, and down where a row is full; a panel is as high as the highest of its line."""
    lines = [[]]
    for spec in specs:
        width = spec.setdefault("width", 24)
        if lines[-1] and sum(other["width"] for other in lines[-1]) + width > 24:
            lines.append([])
        lines[-1].append(spec)
    y = 0
    for line in lines:
        height = max(1 if spec["kind"] == "row" else spec.get("height", HEIGHTS[spec["kind"]]) for spec in line)
        x = 0
        for spec in line:
            yield spec, {"x": x, "y": y, "w": spec["width"], "h": height}
            x += spec["width"]
        y += height


def dashboard(name, title, specs):
    panels = [grafana_panel(spec, number, grid) for number, (spec, grid) in enumerate(laid_out(specs), 1)]
    links = [{"title": "walship's other dashboards", "type": "dashboards", "tags": ["walship"], "asDropdown": True,
              "includeVars": True, "keepTime": True}]
    return {"uid": f"walship-{name}", "title": title, "tags": ["walship"], "schemaVersion": 39, "version": 1,
            "editable": False, "timezone": "", "refresh": "30s", "time": {"from": "now-6h", "to": "now"}, "links": links,
            "templating": {"list": list(variables(name == "fleet"))}, "panels": panels}


def text_of(made):
    """JSON with a panel and a variable on each line."""
    lines = []
    for key, value in made.items():
        items = value["list"] if key == "templating" else value
        if key in ("templating", "panels"):
            inner = ",\n".join("    " + json.dumps(item, ensure_ascii=False) for item in items)
            inner = f"[\n{inner}\n  ]"
            lines.append(f'  "{key}": ' + (f'{{"list": {inner}}}' if key == "templating" else inner))
        else:
            lines.append(f'  "{key}": {json.dumps(value, ensure_ascii=False)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main():
    made = {"cluster": ("PostgreSQL cluster", CLUSTER), "archive": ("Archive and recoverability", ARCHIVE),
            "pgbouncer": ("PgBouncer", PGBOUNCER), "fleet": ("Fleet", FLEET)}
    stale = []
    for name, (title, specs) in made.items():
        path = DASHBOARDS / f"{name}.json"
        text = text_of(dashboard(name, title, specs))
        if sys.argv[1:] != ["--check"]:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(path.name)
    if stale:
        sys.exit(f"not what make_dashboards.py writes: {', '.join(stale)}; run scripts/lib/make_dashboards.py")


if __name__ == "__main__":
    main()
