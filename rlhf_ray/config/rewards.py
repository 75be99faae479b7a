"""Where scores come from: learned models, python functions and services, each with a weight."""
