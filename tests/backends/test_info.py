import torch

import fastcsm
from fastcsm import backends


def test_info():
    info = fastcsm.info()
    assert info["versions"]["fastcsm"] == fastcsm.__version__
    assert info["versions"]["torch"] == torch.__version__
    assert set(info["ops"]) == set(backends.OPS)
    text = str(info)
    for op, devices in info["ops"].items():
        assert op in text
        for entry in devices.values():
            assert entry["backend"] not in entry["not"]
            assert len(entry["not"]["triton"]) >= 1
    built = not backends.CPU().missing()
    assert {entry["cpu"]["backend"] for entry in info["ops"].values()} == {"cpu" if built else "reference"}
    assert set(info["environment"]) == {"FASTCSM_BUILD"}
    assert "FASTCSM_BUILD" in text
