"""Measurements that are run by hand: the exam on synthetic spines, the realism of these, real scans."""
