# shellcheck shell=bash
# The parts of scripts/monitoring-demo: servers, receivers, and what is waited for. Needs common.sh.
# Everything lies in $work and listens on loopback. Processes are ended by the ids in $work/pids.

step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

# The servers run as $user, because PostgreSQL refuses to run as root.
as_user() {
    "${as_user[@]}" "$@"
}

find_programs() {
    pg=$(scripts/tools postgres 17)
    user=$(scripts/tools user)
    as_user=()
    ! is_root || as_user=(setpriv --reuid "$user" --regid "$(id -g "$user")" --clear-groups env)
    pgbouncer=$(scripts/tools pgbouncer)
    prometheus=$(scripts/tools prometheus)
    alertmanager=$(scripts/tools alertmanager)
    node_exporter=$(scripts/tools node-exporter)
}

make_work_folder() {
    work=$(mktemp -d /tmp/walship-monitoring.XXXXXX)
    chmod 755 "$work"
    mkdir "$work/pids" "$work/log" "$work/secrets"
    # The servers' user may not be able to read this folder.
    walship=$work/walship
    # shellcheck disable=SC2153 # set by whoever sources this
    install -m 755 "$WALSHIP" "$walship"
    read -r one_port two_port bouncer_port one_agent two_agent node_port prometheus_port alertmanager_port < <(free_ports 8)
    ! is_root || chown -R "$user" "$work"
    export PATH=$pg/bin:$PATH LD_LIBRARY_PATH=$pg/lib PGUSER=postgres PGHOST=$work HOME=$work
}

# free_ports N: so many ports that nobody listens on.
free_ports() {
    python3 -c 'import socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(s.getsockname()[1] for s in held))' "$1"
}

# start NAME COMMAND...: in the background, as the servers' user.
start() {
    local name=$1
    shift
    # Not by the function: $! must be the process itself.
    "${as_user[@]}" "$@" >>"$work/log/$name" 2>&1 &
    echo $! >"$work/pids/$name"
}

end_process() {
    local pid
    pid=$(<"$work/pids/$1")
    rm "$work/pids/$1"
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}

cleanup() {
    local status=$? file
    ((status == 0)) || show_logs
    for file in "$work"/pids/*; do
        [[ ! -e $file ]] || end_process "${file##*/}"
    done
    for file in one two; do
        [[ ! -f $work/$file/postmaster.pid ]] || as_user "$pg/bin/pg_ctl" -s -D "$work/$file" -m immediate stop || true
    done
    rm -rf "$work"
}

show_logs() {
    say "the demo failed; the logs end with:"
    tail -n 5 "$work"/log/* >&2 || true
    [[ ! -f $work/received ]] || say "received: $(tail -n 5 "$work/received")"
    curl -s "http://127.0.0.1:$alertmanager_port/api/v2/alerts?silenced=false" | head -c 2000 >&2 || true
}

psql_one() { as_user "$pg/bin/psql" -XAtq -v ON_ERROR_STOP=1 -p "$one_port" -d postgres "$@"; }

# write: a commit, and a segment that waits for the archiver.
write() {
    psql_one -c "SET client_min_messages = warning" -c "CREATE TABLE IF NOT EXISTS written (at timestamptz)" -c "INSERT INTO written VALUES (now())" \
        -c "SELECT pg_switch_wal()" >/dev/null
}

write_and_archive() {
    write
    until [[ -z $(find "$work/one/pg_wal/archive_status" -name '*.ready') ]]; do sleep 0.2; done
}

start_server() {
    as_user "$pg/bin/pg_ctl" -s -w -t 120 -D "$work/$1" -l "$work/log/postgres-$1" start
}

# kill_server DIR: as a crash ends it.
kill_server() {
    as_user "$pg/bin/pg_ctl" -s -D "$1" -m immediate stop
}

start_cluster() {
    as_user "$pg/bin/initdb" -D "$work/one" -U postgres -A trust --locale=C -E UTF8 --wal-segsize=1 >/dev/null
    as_user tee -a "$work/one/postgresql.conf" >/dev/null <<CONF
listen_addresses = '127.0.0.1'
port = $one_port
unix_socket_directories = '$work'
archive_mode = on
archive_command = '$walship push --config $work/one.toml %p'
max_slot_wal_keep_size = 1GB
shared_preload_libraries = 'pg_stat_statements'
CONF
    agent_settings one "$one_agent" "pgbouncer = \"host=127.0.0.1 port=$bouncer_port user=postgres dbname=pgbouncer\"" \
        "pgbouncer_log = \"$work/log/pgbouncer\""
    agent_settings two "$two_agent"
    start_server one
    psql_one -c "CREATE EXTENSION IF NOT EXISTS pg_stat_statements" -c "SELECT pg_create_physical_replication_slot('two')" >/dev/null
    as_user "$pg/bin/pg_basebackup" -D "$work/two" -p "$one_port" -R -S two -d "application_name=two" -c fast
    echo "port = $two_port" | as_user tee -a "$work/two/postgresql.conf" >/dev/null
    start_server two
}

# agent_settings NAME PORT LINE...: the agent's walship.toml.
agent_settings() {
    local name=$1 port=$2
    shift 2
    {
        printf 'archive = "file://%s/archive"\n\n[metrics]\nlisten = "127.0.0.1:%s"\ninterval = "2s"\npostgres = true\n' "$work" "$port"
        printf '%s\n' "$@"
        printf '\n[retention]\nkeep_backups = 2\n'
    } | as_user tee "$work/$name.toml" >/dev/null
}

start_agents() {
    start agent-one "$walship" agent --config "$work/one.toml" --pgdata "$work/one" -d "host=$work port=$one_port user=postgres dbname=postgres"
    start agent-two "$walship" agent --config "$work/two.toml" --pgdata "$work/two" -d "host=$work port=$two_port user=postgres dbname=postgres"
    answers agent-one "http://127.0.0.1:$one_agent/metrics"
    answers agent-two "http://127.0.0.1:$two_agent/metrics"
}

# A pool of one connection is soon exhausted.
start_pgbouncer() {
    as_user tee "$work/pgbouncer.ini" >/dev/null <<INI
[databases]
postgres = host=127.0.0.1 port=$one_port pool_size=1
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $bouncer_port
unix_socket_dir =
auth_type = any
admin_users = postgres
pool_mode = transaction
server_login_retry = 1
ignore_startup_parameters = extra_float_digits
INI
    # `any` needs a user for the server.
    sed -i 's/pool_size=1/pool_size=1 user=postgres/' "$work/pgbouncer.ini"
    start pgbouncer "$pgbouncer" "$work/pgbouncer.ini"
}

fill_pgbouncer() {
    local number
    for number in 1 2 3; do
        start "client-$number" "$pg/bin/psql" -X -h 127.0.0.1 -p "$bouncer_port" -d postgres -c "SELECT pg_sleep(120)"
    done
}

empty_pgbouncer() {
    local number
    for number in 1 2 3; do
        end_process "client-$number"
    done
    psql_one -c "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()" >/dev/null
}

start_receivers() {
    start sinks python3 scripts/lib/alert_sinks.py "$work"
    until [[ -f $work/ports ]]; do sleep 0.1; done
    # shellcheck source=/dev/null
    . "$work/ports"
    # shellcheck disable=SC2154 # web_port is in that file
    echo "http://127.0.0.1:$web_port/slack" >"$work/secrets/slack-webhook"
    echo "not-a-routing-key" >"$work/secrets/pagerduty-routing-key"
    echo "not-a-password" >"$work/secrets/smtp-password"
    as_user touch "$work/received"
}

# web_port and mail_port come from $work/ports.
# shellcheck disable=SC2154
# The files of deploy/monitoring, with this machine's addresses and with less patience.
start_monitoring() {
    cp -r deploy/monitoring/rules "$work/rules"
    # This machine's own disk and clock are no part of it.
    sed -i -E -e 's/^( +for:) .*/\1 3s/; s/\[5m\]/[15s]/g; s/(disk_avail:ratio) < 0.[13]/\1 < 0.001/' \
        -e 's/(node_timex_(offset|maxerror)_seconds\)?) >=? [0-9.]+/\1 > 1e9/' "$work"/rules/*.yml
    sed -E -e "s/_interval: 15s/_interval: 1s/; s/127.0.0.1:9093/127.0.0.1:$alertmanager_port/" \
        -e "s/10.0.0.1:9987, 10.0.0.2:9987/'127.0.0.1:$one_agent', '127.0.0.1:$two_agent'/" \
        -e "s/10.0.0.1:9100, 10.0.0.2:9100/'127.0.0.1:$node_port'/" deploy/monitoring/prometheus.yml >"$work/prometheus.yml"
    sed -E -e "s|/etc/alertmanager/secrets|$work/secrets|; s/mail.example.org:587/127.0.0.1:$mail_port/" \
        -e "s|^global:|global:\n  smtp_require_tls: false\n  pagerduty_url: http://127.0.0.1:$web_port/pager|" \
        -e 's/group_wait: .*/group_wait: 1s/; s/group_interval: .*/group_interval: 1s/' \
        deploy/monitoring/alertmanager.yml >"$work/alertmanager.yml"
    ! is_root || chown -R "$user" "$work/rules" "$work/secrets" "$work"/*.yml
    start_node_exporter
    install_alertmanager_templates
    start alertmanager "$alertmanager" --config.file="$work/alertmanager.yml" --storage.path="$work/alertmanager" \
        --web.listen-address="127.0.0.1:$alertmanager_port" --cluster.listen-address=
    start prometheus "$prometheus" --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/prometheus" \
        --web.listen-address="127.0.0.1:$prometheus_port" --log.level=warn
    answers alertmanager "http://127.0.0.1:$alertmanager_port/-/ready"
    answers prometheus "http://127.0.0.1:$prometheus_port/-/ready"
}

# Debian's Alertmanager reads its templates from there, wherever the program is.
install_alertmanager_templates() {
    local file=/usr/share/prometheus/alertmanager/default.tmpl
    [[ -e $file ]] || root_run install -D -m 644 -t "${file%/*}" "${alertmanager%/usr/bin/*}${file%/*}"/*.tmpl ||
        die "please install the Debian package prometheus-alertmanager: $file is missing"
}

start_node_exporter() {
    start node_exporter "$node_exporter" --web.listen-address="127.0.0.1:$node_port" --no-collector.systemd \
        --collector.textfile.directory="$work/log"
    answers node_exporter "http://127.0.0.1:$node_port/metrics"
}

# answers NAME URL: waits until it does.
answers() {
    local try
    for ((try = 0; try < 300; try++)); do
        ! curl -sf -o /dev/null "$2" || return 0
        sleep 0.1
    done
    die "$1 does not answer at $2"
}

# How many alerts fire now.
firing() {
    curl -s "http://127.0.0.1:$prometheus_port/api/v1/alerts" |
        python3 -c 'import json, sys
print(*sorted(a["labels"]["alertname"] for a in json.load(sys.stdin)["data"]["alerts"] if a["state"] == "firing"))'
}

# Nothing fires for ten seconds.
wait_until_quiet() {
    local try quiet=0
    for ((try = 0; try < 90 && quiet < 10; try++)); do
        sleep 1
        if [[ -z $(firing) ]]; then quiet=$((quiet + 1)); else quiet=0; fi
    done
    ((quiet == 10)) || die "on a healthy cluster this fires: $(firing)"
    echo "no alert fires"
    forget_received
}

forget_received() {
    : >"$work/received"
}

# arrives SINK STATUS ALERT: waits until it did, and shows it.
arrives() {
    local try began=$SECONDS
    for ((try = 0; try < 600; try++)); do
        if received "$1" "$2" "$3"; then
            printf '%-6s %-9s %s, after %d s\n' "$1" "$2" "$3" $((SECONDS - began))
            return
        fi
        sleep 0.2
    done
    die "$3 did not arrive at $1 as $2"
}

not_at() {
    ! received "$1" firing "$2" || die "$2 arrived at $1"
    echo "$2 did not go to: $1"
}

# received SINK STATUS ALERT: in a message that resolves a group, or that names the alert with this status.
received() {
    python3 - "$work/received" "$@" <<'PYTHON'
import json, re, sys
path, sink, status, alert = sys.argv[1:]
for line in open(path):
    message = json.loads(line)
    text = message["text"]
    said = re.search(rf"{status}\W+{alert}\b|{alert}\W+{status}\b", text)
    if message["sink"] == sink and alert in text and (message["status"] == status or said):
        sys.exit(0)
sys.exit(1)
PYTHON
}
