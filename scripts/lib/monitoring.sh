# shellcheck shell=bash
# The checks of deploy/monitoring that need no server: rules, their tests, who is told, dashboards, documents.
# Needs common.sh, and is run in the repository.

# check_monitoring: all of them. Each that fails says so; all are run.
check_monitoring() {
    local prometheus alertmanager status=0
    prometheus=$(scripts/tools prometheus) || return
    alertmanager=$(scripts/tools alertmanager) || return
    monitoring_step promtool check rules deploy/monitoring/rules/*.yml || status=1
    monitoring_step promtool check config deploy/monitoring/prometheus.yml || status=1
    monitoring_step promtool test rules deploy/monitoring/tests/*.yml || status=1
    monitoring_step amtool check-config deploy/monitoring/alertmanager.yml || status=1
    alert_reaches pager-pagerduty severity=critical alertname=PrimaryDown cluster=main || status=1
    alert_reaches chat-and-mail severity=warning alertname=ReplicationLag cluster=main || status=1
    alert_reaches chat-and-mail alertname=WithoutSeverity || status=1
    monitoring_step scripts/lib/make_dashboards.py --check || status=1
    monitoring_step scripts/lib/check_dashboards.py || status=1
    monitoring_step scripts/lib/check_monitoring_docs.py || status=1
    return "$status"
}

# alert_reaches RECEIVER LABEL=VALUE...: an alert with these labels goes to this receiver and to no other.
alert_reaches() {
    local receiver=$1
    shift
    monitoring_step amtool config routes test --config.file=deploy/monitoring/alertmanager.yml \
        --verify.receivers="$receiver" "$@"
}

# monitoring_step COMMAND...: runs it, with promtool and amtool where scripts/tools has put them. Its output is shown if it fails.
monitoring_step() {
    local output
    if ! output=$(PATH=${prometheus%/*}:${alertmanager%/*}:$PATH "$@" 2>&1); then
        printf 'failed: %s\n%s\n' "$*" "$output" >&2
        return 1
    fi
}
