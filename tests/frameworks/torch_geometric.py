"""PyTorch Geometric: graphs, batches, heterogeneous graphs, data sets, models."""

from __future__ import annotations

from pathlib import Path

import torch
from torch_geometric.data import Batch, Data, HeteroData, InMemoryDataset
from torch_geometric.nn import GAT, GCN

from frameworks.expected import expecting


def write(folder: Path) -> None:
    edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    graph = Data(x=torch.ones(3, 4), edge_index=edges, y=torch.tensor([0, 1, 0]))
    hetero = HeteroData()
    hetero["paper"].x = torch.ones(3, 4)
    hetero["author"].x = torch.ones(2, 4)
    hetero["author", "writes", "paper"].edge_index = torch.tensor([[0, 1], [0, 2]])
    facts = {"role": "object", "verdict": "needs-trust", "framework": "PyTorch Geometric"}
    torch.save(graph, expecting(folder / "graph.pt", **facts))
    torch.save([graph, graph], expecting(folder / "graphs.pt", **facts))
    torch.save(Batch.from_data_list([graph, graph]), expecting(folder / "batch.pt", **facts))
    torch.save(hetero, expecting(folder / "hetero.pt", **facts))
    torch.save(InMemoryDataset.collate([graph, graph]), expecting(folder / "processed.pt", **facts))
    path = expecting(folder / "dataset.pt", framework="PyTorch Geometric")
    InMemoryDataset.save([graph, graph], path)
    for name, model in (("gcn", GCN(4, 8, 2, 2)), ("gat", GAT(4, 8, 2, 2))):
        path = expecting(folder / f"{name}_whole.pt", role="module", verdict="needs-trust")
        torch.save(model, path)
        path = expecting(folder / f"{name}.pt", role="state_dict", state_dicts={"": "model"})
        torch.save(model.state_dict(), path)
    model = GCN(4, 8, 2, 2, norm="batch")
    torch.save(model, expecting(folder / "normed_whole.pt", role="module"))
