#!/bin/sh
# Tell people what became of a pipeline: by mail, by ntfy, in a chat.
#
#     MAIL_TO=team@example.org NTFY_URL=https://ntfy.sh/my-topic CHAT_URL=https://chat.example.org/hooks/xyz \
#         minici --hook /path/to/notify.sh
#
# Those of the three that are set are used. CHAT_URL is an incoming webhook of Mattermost, Rocket.Chat, Slack or
# another that takes {"text": ...}. Only a branch that breaks or recovers is news; with NOTIFY=always every
# pipeline that has finished is. When this fails it is run again, so after trouble with one of several ways
# the others may hear the same news twice. Needs python3 and curl, for mail also a "mail" command.
#
# The hook's standard input is one JSON object for each change of a job's or pipeline's status:
#
#     {"kind": "pipeline", "status": "failed", "before": "running", "project": "group/demo",
#      "previous_status": "success",         what the pipeline before on the same ref came to, or null
#      "pipeline": {"id": 7, "ref": "main", "sha": ..., "web_url": ..., all else that the API shows}}
#     {"kind": "job", "status": ..., "before": ..., "job": {...}}

news=$(python3 -c '
import json, os, sys

told = json.load(sys.stdin)
status, before = told["status"], told.get("previous_status")
broken, recovered = status == "failed" != before, status == "success" and before == "failed"
always = os.environ.get("NOTIFY") == "always" and status in ("success", "failed", "canceled")
if told["kind"] == "pipeline" and (broken or recovered or always):
    words = "is broken" if broken else "works again" if recovered else status
    pipeline = told["pipeline"]
    print(told["project"], pipeline["ref"], words + ":", "pipeline", pipeline["id"], "at", pipeline["sha"][:8])
    print(pipeline["web_url"])
') || exit 1
[ -n "$news" ] || exit 0
title=$(printf '%s\n' "$news" | sed 1q)

failed=0
if [ -n "$MAIL_TO" ]; then
    printf '%s\n' "$news" | mail -s "$title" "$MAIL_TO" || failed=1
fi
if [ -n "$NTFY_URL" ]; then
    printf '%s\n' "$news" | curl --fail --silent --show-error --max-time 30 --data-binary @- "$NTFY_URL" || failed=1
fi
if [ -n "$CHAT_URL" ]; then
    printf '%s\n' "$news" | python3 -c 'import json, sys; print(json.dumps({"text": sys.stdin.read()}))' |
        curl --fail --silent --show-error --max-time 30 -H 'Content-Type: application/json' --data-binary @- \
            "$CHAT_URL" || failed=1
fi
exit $failed
