"""stub"""
from bench.experiment import Experiment
class Micro(Experiment):
    name = "micro"
