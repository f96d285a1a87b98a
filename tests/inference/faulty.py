"""A server that does everything wrong."""

import asyncio
import json
import random
from collections import Counter

from aiohttp import web

from tests.support.servers import LoopbackServer

FAULTS = ("500", "429", "hang", "disconnect", "truncated", "wrong model", "slow")


class FaultyServer(LoopbackServer):
    """Answers like vLLM, echoing the prompt's ids; each request draws a fault with probability ``rate``."""

    def __init__(self, rate: float, seed: int = 0, port: int = 0, faults: tuple[str, ...] = FAULTS):
        super().__init__(web.post("/v1/completions", self.completions), web.get("/v1/models", self.models), port=port)
        self.rate, self.random, self.faults = rate, random.Random(seed), faults
        self.seen: Counter[str] = Counter()
        self.answered = 0
        self.held = asyncio.Event()  # waited for by the fault "hang", and before the last token of a stream by "hold"

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m", "owned_by": "vllm"}]})

    async def die(self) -> None:
        self.held.set()
        await super().die()

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if isinstance(body["prompt"], str):
            return web.json_response({"error": {"message": "it takes token ids only"}}, status=400)
        fault = self.random.choice(self.faults) if self.random.random() < self.rate else "none"
        self.seen[fault] += 1
        ids = body["prompt"]
        choice = {"index": 0, "text": " ".join(map(str, ids)), "token_ids": ids, "finish_reason": "stop"}
        answer = {
            "model": "m",
            "choices": [choice],
            "usage": {"prompt_tokens": len(ids), "completion_tokens": len(ids)},
        }
        if fault == "500":
            return web.json_response({"error": {"message": "out of memory"}}, status=500)
        if fault == "429":
            return web.json_response({"error": "busy"}, status=429, headers={"Retry-After": "0.02"})
        if fault == "hang":
            await self.held.wait()
        if fault == "wrong model":
            answer["model"] = "other"
        if fault == "slow":
            await asyncio.sleep(0.1)
        if body.get("stream"):
            return await self.stream(request, fault, ids)
        text = json.dumps(answer)
        if fault == "disconnect":
            response = web.StreamResponse(headers={"Content-Length": str(len(text))})
            await response.prepare(request)
            await response.write(text[: len(text) // 2].encode())
            request.transport.close()
            return response
        if fault == "truncated":
            text = text[: len(text) // 2]
        self.answered += fault in ("none", "slow")
        return web.Response(text=text, content_type="application/json")

    async def stream(self, request, fault, ids):
        response = web.StreamResponse()
        await response.prepare(request)
        for i, token in enumerate(ids):
            choice = {"index": 0, "text": f"{token} ", "token_ids": [token], "finish_reason": None}
            if i == len(ids) - 1:
                choice["finish_reason"] = "stop"
            line = json.dumps({"model": "other" if fault == "wrong model" else "m", "choices": [choice]})
            if i == len(ids) - 1 and fault == "hold":
                await self.held.wait()
            if i == 1 and fault in ("disconnect", "truncated"):
                await response.write(f"data: {line[:9] if fault == 'truncated' else line}\n\n".encode())
                request.transport.close()
                return response
            await response.write(f"data: {line}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response
