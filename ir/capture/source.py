class Source: pass
def load_source(*a, **k): raise NotImplementedError
def materialize(*a, **k): raise NotImplementedError
