"""Pure tensor functions: masked statistics, KL, rewards, advantages, losses. Imports torch and nothing of ours."""
