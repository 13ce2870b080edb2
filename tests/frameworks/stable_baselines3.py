"""stable-baselines3: the zip of each algorithm, its replay buffer, its policy, its normalizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from frameworks.expected import expecting

NAME = "stable-baselines3"
ALGORITHMS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "ppo": (PPO, "CartPole-v1", {"n_steps": 16, "batch_size": 8, "n_epochs": 1}),
    "a2c": (A2C, "CartPole-v1", {}),
    "dqn": (DQN, "CartPole-v1", {"learning_starts": 4, "buffer_size": 50}),
    "sac": (SAC, "Pendulum-v1", {"learning_starts": 4, "buffer_size": 50}),
    "td3": (TD3, "Pendulum-v1", {"learning_starts": 4, "buffer_size": 50}),
    "ddpg": (DDPG, "Pendulum-v1", {"learning_starts": 4, "buffer_size": 50}),
}


def write(folder: Path) -> None:
    for name, (algorithm, environment, options) in ALGORITHMS.items():
        keywords = {"net_arch": [8]}
        model = algorithm("MlpPolicy", environment, policy_kwargs=keywords, device="cpu", **options)
        model.learn(20)
        path = expecting(folder / f"{name}.zip", container="archive", framework=NAME)
        model.save(path)
        path = expecting(folder / f"{name}_policy.pth", framework=NAME, role="checkpoint")
        model.policy.save(path)
        path = expecting(
            folder / f"{name}_weights.pt", role="state_dict", state_dicts={"": "model"}
        )
        torch.save(model.policy.state_dict(), path)
        if hasattr(model, "save_replay_buffer"):
            path = expecting(folder / f"{name}_buffer.pkl", framework=NAME, role="object")
            model.save_replay_buffer(path)
    _with_functions(folder)
    environments = VecNormalize(make_vec_env("CartPole-v1"))
    environments.reset()
    environments.save(str(expecting(folder / "normalize.pkl", framework=NAME, role="object")))


def _with_functions(folder: Path) -> None:
    """Write a model with schedules of the user's own: its `data` then holds pickled functions.

    Until 2.3 every model's was such a file, since the constant schedules were local functions too.
    """

    def decayed(initial: float) -> Any:
        def schedule(remaining: float) -> float:
            return remaining * initial

        return schedule

    options = ALGORITHMS["ppo"][2]
    model = PPO(
        "MlpPolicy",
        "CartPole-v1",
        learning_rate=decayed(3e-4),
        clip_range=decayed(0.2),
        policy_kwargs={"net_arch": [8], "activation_fn": torch.nn.ReLU},
        device="cpu",
        **options,
    )
    path = expecting(
        folder / "ppo_functions.zip", container="archive", framework=NAME, verdict="needs-trust"
    )
    model.save(path)
