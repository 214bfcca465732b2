"""In place of Grafana: /api/health is 200 once provisioning, dashboards and all queries on them are in order."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

PROVISIONING = Path("/etc/grafana/provisioning")
WINDOW = {"$__rate_interval": "2m", "$__interval": "15s", "$__range": "15m"}


def check():
    """Titles of the dashboards, how many queries had an answer, and all that is wrong."""
    sources = {}
    for file in (PROVISIONING / "datasources").glob("*.y*ml"):
        sources |= {source["uid"]: source for source in yaml.safe_load(file.read_text())["datasources"]}
    titles, wrong, answered = [], [], 0
    for file in (PROVISIONING / "dashboards").glob("*.y*ml"):
        for provider in yaml.safe_load(file.read_text())["providers"]:
            for dashboard in Path(provider["options"]["path"]).rglob("*.json"):
                board = json.loads(dashboard.read_text())
                titles.append(board["title"])
                for title, expression in queries(board):
                    problem = ask(next(iter(sources.values()))["url"], expression)
                    answered += not problem
                    wrong += [f"{title}: {problem}: {expression}"] if problem else []
    return {"dashboards": titles, "answered": answered, "wrong": wrong}


def queries(board):
    names = [variable["name"] for variable in board["templating"]["list"]]
    for panel in board["panels"]:
        for inner in [panel, *panel.get("panels", [])]:
            for target in inner.get("targets", []):
                expression = target["expr"]
                for name, value in WINDOW.items():
                    expression = expression.replace(name, value)
                for name in names:
                    expression = re.sub(rf"\$\{{?{name}\b\}}?", ".*", expression)
                yield inner["title"], expression


def ask(url, expression):
    query = urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=5) as reply:
            return "" if json.load(reply)["data"]["result"] else "no data"
    except OSError as problem:
        return str(problem)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        found = check()
        self.send_response(200 if found["dashboards"] and not found["wrong"] else 503)
        self.end_headers()
        self.wfile.write(json.dumps(found).encode())

    def log_message(self, *arguments):
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("", 3000), Handler).serve_forever()
