"""SFT, reward model and PPO: each a page that reads like the paper."""
