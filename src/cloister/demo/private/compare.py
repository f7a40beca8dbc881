"""What privacy costs: the lab's network trained on the same records, without bounds and without noise.

Nobody in the story could run this, since nobody has both hospitals' records; whoever made them up can. Reads the
folders of records and the tables of the patients who were kept back; prints the accuracy on these.

    python compare.py --records records-a --records records-b --test a.csv --test b.csv --steps 60 \
        --learning-rate 0.5 --momentum 0.5
"""

import argparse
import csv
import json
from pathlib import Path

import torch
from network import build  # pyright: ignore[reportMissingImports] - the file beside this one
from safetensors.torch import load_file


def main() -> None:
    """Reads, trains, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, required=True, action="append", help="a folder of records")
    parser.add_argument("--test", type=Path, required=True, action="append", help="a table of patients kept back")
    parser.add_argument("--steps", type=int, required=True, help="of the training, each with all records")
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--momentum", type=float, required=True)
    args = parser.parse_args()

    parts = [load_file(folder / "records.safetensors") for folder in args.records]
    batch = torch.cat([part["0"] for part in parts]), torch.cat([part["1"] for part in parts])
    network, loss, _ = build()
    optimizer = torch.optim.SGD(network.parameters(), lr=args.learning_rate, momentum=args.momentum)
    for _ in range(args.steps):
        optimizer.zero_grad()
        loss(network, batch).mean().backward()
        optimizer.step()

    rows: list[list[str]] = []
    for path in args.test:
        with path.open(encoding="utf-8", newline="") as file:
            rows += list(csv.reader(file))[1:]
    truth = torch.tensor([row[1] == "malignant" for row in rows])
    with torch.no_grad():
        logits = network(torch.tensor([[float(value) for value in row[2:]] for row in rows]))[:, 0]
    accuracy = float(((logits >= 0) == truth).float().mean())
    print(json.dumps({"accuracy": round(accuracy, 4), "test_patients": len(rows)}))


if __name__ == "__main__":
    main()
