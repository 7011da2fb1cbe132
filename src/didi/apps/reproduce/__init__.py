"""``didi reproduce``: the paper's tables and figures, from runs and measurements that are made once and stored."""
