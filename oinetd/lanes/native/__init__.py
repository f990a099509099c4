"""The lane of the reactors: the native data plane as the control plane sees it."""
