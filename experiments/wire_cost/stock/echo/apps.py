"""The same two apps for both set-ups: a hospital that adds noise to what it gets, a server that times its rounds."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Weights plus noise, so that no two hospitals send the same bytes."""
    weights = message.content.array_records["weights"]["weights"].numpy()
    update = weights + np.random.default_rng().random(weights.size, dtype=np.float32)
    return Message(RecordDict({"update": ArrayRecord({"update": Array(update)})}), reply_to=message)


def timed_rounds(grid: Grid, megabytes: float, rounds: int, hospitals: int) -> list[float]:
    """Seconds of each round: weights out to every hospital, updates back, their mean."""
    while len(nodes := list(grid.get_node_ids())) < hospitals:
        time.sleep(0.2)
    weights = np.random.default_rng(0).random(int(megabytes * 250_000), dtype=np.float32)
    seconds = []
    for number in range(rounds):
        began = time.perf_counter()
        content = RecordDict({
            "instruction": ConfigRecord({"study": "0" * 64, "round": number}),
            "weights": ArrayRecord({"weights": Array(weights)}),
        })
        total = np.zeros(weights.size)
        for reply in grid.send_and_receive([Message(content, node, "train") for node in nodes], timeout=300):
            total += reply.content.array_records["update"]["update"].numpy()
            hospitals -= 0 if number else 1
        weights = (total / len(nodes)).astype(np.float32)
        seconds.append(time.perf_counter() - began)
    if hospitals:
        raise RuntimeError(f"{hospitals} hospitals did not answer the first round")
    return seconds


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Time the rounds that the run's configuration asks for, into the file that it names."""
    config = context.run_config
    seconds = timed_rounds(grid, float(config["megabytes"]), int(config["rounds"]), int(config["hospitals"]))
    Path(str(config["out"])).write_text(json.dumps(seconds))
