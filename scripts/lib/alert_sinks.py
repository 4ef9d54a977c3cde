#!/usr/bin/env python3
"""Stand-ins for PagerDuty, Slack and a mail server on loopback, for scripts/monitoring-demo.

usage: alert_sinks.py DIR

Writes DIR/ports as shell assignments when it listens. What arrives is a line of JSON with `sink`, `status` and `text`
in DIR/received: `status` is firing or resolved, `text` all that was sent.
"""

import email
import email.policy
import http.server
import json
import pathlib
import socketserver
import sys
import threading

LOCK = threading.Lock()


def receive(directory, sink, status, text):
    line = json.dumps({"sink": sink, "status": status, "text": text})
    with LOCK, (directory / "received").open("a") as log:
        log.write(line + "\n")


def status_of(resolved):
    return "resolved" if resolved else "firing"


class Web(http.server.BaseHTTPRequestHandler):
    """PagerDuty's Events API, and a Slack webhook. Both take JSON by POST."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = json.dumps(body, ensure_ascii=False)
        if self.path == "/slack":
            title = body["attachments"][0]["title"]
            receive(self.server.directory, "slack", status_of("RESOLVED" in title), text)
            self.answer(200, b"ok")
        else:
            receive(self.server.directory, "pager", status_of(body["event_action"] == "resolve"), text)
            self.answer(202, b'{"status": "success", "message": "Event processed", "dedup_key": "demo"}')

    def answer(self, code, body):
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Mail(socketserver.StreamRequestHandler):
    """As much of SMTP as takes a message."""

    def handle(self):
        self.say("220 demo")
        while line := self.rfile.readline():
            verb = line.split(b" ")[0].strip().upper()
            if verb == b"DATA":
                self.say("354 go on")
                self.take()
            elif verb == b"QUIT":
                self.say("221 bye")
                return
            else:
                self.say("250 ok")

    def take(self):
        lines = []
        while (line := self.rfile.readline()) not in (b".\r\n", b""):
            lines.append(line.removeprefix(b"."))
        message = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
        body = message.get_body(("plain",))
        text = f"{message['Subject']}\n{body.get_content() if body else ''}"
        receive(self.server.directory, "mail", status_of("RESOLVED" in text.split("\n")[0]), text)
        self.say("250 taken")

    def say(self, text):
        self.wfile.write(f"{text}\r\n".encode())


def main():
    directory = pathlib.Path(sys.argv[1])
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    mail = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail)
    for server in (web, mail):
        server.directory = directory
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever).start()
    ports = directory / "ports.new"
    ports.write_text(f"web_port={web.server_address[1]}\nmail_port={mail.server_address[1]}\n")
    ports.rename(directory / "ports")


if __name__ == "__main__":
    main()
