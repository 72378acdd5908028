"""The client app. It does not depend on fedround."""

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits_flower import task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    model = {name: array.numpy() for name, array in message.content["arrays"].items()}
    images, labels = task.digits(context.node_config["partition-id"], context.node_config["num-partitions"])
    config = context.run_config
    model, loss = task.train(model, images, labels, learning_rate=config["learning-rate"], steps=config["local-steps"])
    arrays = ArrayRecord({name: Array(array) for name, array in model.items()})
    metrics = MetricRecord({"num-examples": len(labels), "train-loss": loss})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
