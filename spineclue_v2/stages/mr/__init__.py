"""Spine MR (SSHSNet, Huang et al., arXiv 2203.12151): two 2D branches learn from labelled and unlabelled slices, a 3D network refines."""
