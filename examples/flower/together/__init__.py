"""One model, fine-tuned on the data of many Flower nodes."""
