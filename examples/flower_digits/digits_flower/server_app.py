"""The server app. fedround has its own coordinator and aggregator, and does not use this file."""

from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from digits_flower import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    arrays = ArrayRecord({name: Array(array) for name, array in task.initial().items()})
    result = FedAvg(fraction_evaluate=0.0).start(grid, arrays, num_rounds=context.run_config["num-server-rounds"])
    print("accuracy", task.accuracy({name: array.numpy() for name, array in result.arrays.items()}))  # noqa: T201
