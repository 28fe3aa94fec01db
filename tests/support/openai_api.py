"""A plain HTTP client of a vLLM server."""

import httpx
import msgspec


class Api:
    """Asks one server; every answer must be 200."""

    def __init__(self, server):
        self._server = server
        self.http = httpx.Client(base_url=server.base_url, trust_env=False, timeout=120.0)
        self.model = server.served_name
        self.server_pid = server.pid

    def fresh(self):
        """Return another client, on a connection of its own."""
        return Api(self._server)

    def close(self):
        self.http.close()

    def post(self, path, headers=None, **body):
        body = {"model": self.model, "temperature": 0, "ignore_eos": True} | body
        response = self.http.post(path, json=body, headers=headers or {})
        assert response.status_code == 200, response.text
        return response.json()

    def command(self, path, **body):
        """Ask for something that has no answer worth reading."""
        response = self.http.post(path, json=body)
        assert response.status_code == 200, response.text

    def complete(self, prompt, headers=None, **body):
        body = {"prompt": prompt, "max_tokens": 8, "return_token_ids": True} | body
        return self.post("/v1/completions", headers, **body)

    def chat(self, text, headers=None, **body):
        messages = [{"role": "user", "content": text}]
        body = {"messages": messages, "max_tokens": 8, "return_token_ids": True} | body
        return self.post("/v1/chat/completions", headers, **body)

    def events(self, path, **body):
        body = {"model": self.model, "temperature": 0, "ignore_eos": True, "stream": True} | body
        with self.http.stream("POST", path, json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    yield msgspec.json.decode(line[6:])

    def metric(self, name, **labels):
        """Return the sum of a metric's samples that carry these labels."""
        total = 0.0
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith(name) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total
