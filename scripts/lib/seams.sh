# shellcheck shell=bash
# The seams of the structure that Cargo does not hold. Each broken one is named with its file and line.

# production_lines: every line of production code under src and crates, as FILE:LINE:TEXT, without comments and tests.
production_lines() {
    # shellcheck disable=SC2016 # the fields are awk's
    find src crates -name '*.rs' ! -name tests.rs ! -name 'fixture*.rs' ! -path '*/tests/*' ! -name flipped_bits.rs -print0 |
        sort -z | xargs -0 awk '
            FNR == 1 { in_tests = 0; cfg_test = 0 }
            /^ *#\[cfg\(test\)\]/ { cfg_test = 1; next }
            cfg_test && /^ *(pub(\([a-z]+\))? )?mod [a-z_]+ \{/ { in_tests = 1 }
            { cfg_test = 0 }
            in_tests { if ($0 ~ /^}/) in_tests = 0; next }
            { line = $0; sub(/^ *\/\/.*/, "", line); if (line == "") next }
            # An import over several lines is one.
            wrapped == "" && line ~ /^ *(pub(\([a-z]+\))? )?use [^;]*$/ { wrapped = FILENAME ":" FNR ":" line; next }
            wrapped != "" { wrapped = wrapped " " line; if (line ~ /;/) { print wrapped; wrapped = "" } next }
            { print FILENAME ":" FNR ":" line }'
}

# seam WHAT: fails if there are lines on its input, and shows them.
seam() {
    local lines
    lines=$(cat)
    if [[ -n $lines ]]; then
        printf 'broken: %s\n%s\n' "$1" "$lines" >&2
        return 1
    fi
}

# with PATTERN [BUT_NOT]: the lines of $code that match PATTERN and not BUT_NOT.
with() {
    grep -E -- "$1" <<<"$code" | grep -vE -- "${2:-^$}" || true
}

# check_seams: all of them.
check_seams() {
    local code status=0
    code=$(production_lines)
    # shellcheck disable=SC2016 # the fields are awk's
    # A verb is src/verbs/NAME.rs or src/verbs/NAME/; `super` leads from its top to its siblings.
    awk '
        NR == FNR { verbs[$0] = 1; next }
        match($0, /^src\/verbs\/[a-z_]+/) {
            verb = substr($0, 11, RLENGTH - 10)
            path = substr($0, 1, index($0, ":") - 1)
            depth = gsub(/\//, "/", path) - 1
            if (path ~ /\/mod\.rs$/) depth--
            text = $0
            while (match(text, /(crate::verbs|super(::super)*)::(\{[^}]*|[a-z_]+)/)) {
                found = substr(text, RSTART, RLENGTH)
                text = substr(text, RSTART + RLENGTH)
                siblings = found ~ /^crate::verbs/
                ups = gsub(/super::/, "", found)
                sub(/^crate::verbs::/, "", found)
                count = split(found, names, /[^a-z_]+/)
                for (i = 1; (siblings || ups == depth) && i <= count; i++) {
                    if ((names[i] in verbs) && names[i] != verb) { print; next }
                }
            }
        }' <(sed -n 's/^pub mod \([a-z_]*\);$/\1/p' src/verbs/mod.rs) <(printf '%s\n' "$code") | seam 'a verb uses nouns, never another verb' || status=1
    with '\bPutMode\b|\bcreate_in_turn\(' '^(src/archive/(writing|identity)\.rs:|crates/store/)' |
        seam 'only src/archive/writing.rs puts objects into a store, and identity.rs the first' || status=1
    with '\baws_sdk_s3\b' '^crates/store/src/s3[./]' |
        seam 'only the S3 store names aws_sdk_s3' || status=1
    with '"(walship\.(json|probe)|(retention|backup|pending|alive|started|keep|proof|drills|summary)\.json|[a-z]*\.zst)"|"(wal|backups|ledger|damaged)/' \
        '^crates/core/src/format/keys\.rs:' |
        seam 'only format/keys.rs spells keys' || status=1
    with '^crates/core/src/.*(\bstd::(fs|env|process|thread)\b|\b(SystemTime|Instant|Utc)::now\b)' '^crates/core/src/judge/copy_settings/page\.rs:' |
        seam 'the core has no I/O, no environment and no clock' || status=1
    with '^crates/core/src/(format|pg|text)/.*\bcrate::(\{[^;]*\b)?judge\b' |
        seam 'format, pg and text know no judgement' || status=1
    with '^crates/core/src/(pg|text)/.*\bcrate::(\{[^;]*\b)?format\b' | seam 'pg and text know no format' || status=1
    with '^src/verbs/.*\bcrate::\{[^;]*\bverbs\b' | seam 'a verb uses nouns, never another verb' || status=1
    with '^src/archive/.*\bcrate::(\{[^;]*\b)?(verbs|agent|cluster)\b' |
        seam 'the archive knows no cluster, no verb and no agent' || status=1
    with '^src/cluster/.*\bcrate::(\{[^;]*\b)?(verbs|agent)\b' | seam 'the cluster knows no verb and no agent' || status=1
    with '^src/server/.*\bcrate::(\{[^;]*\b)?(verbs|agent|cluster|archive)\b' | seam 'a server knows no archive' || status=1
    with '^src/verbs/.*\bcrate::(\{[^;]*\b)?agent\b' | seam 'a verb knows no agent' || status=1
    with '^src/edge/.*\bcrate::(\{[^;]*\b)?(verbs|agent|command_line|archive|cluster)\b' |
        seam 'the edge knows settings and a server, and nothing above them' || status=1
    with '^src/(verbs|agent|cluster|archive|server)/.*\bcrate::(\{[^;]*\b)?command_line\b' |
        seam 'only main knows the command line' || status=1
    with '\bcrate::(\{[^;]*\b)?inside\b' | seam 'what the tests call from within is for them alone' || status=1
    with '^src/(config[./]|progress\.).*\bcrate::(\{[^;]*\b)?(archive|cluster|verbs|agent|command_line)\b' |
        seam 'settings and progress know nothing above them' || status=1
    with '^src/(cluster|archive|server|config|progress)[./].*\bcrate::(\{[^;]*\b)?edge\b' |
        seam 'only verbs and the agent meet whoever runs them' || status=1
    return "$status"
}
