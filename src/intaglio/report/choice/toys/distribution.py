import torch

logits = torch.tensor([2.0, 1.0, 0.0])      # three words: Paris, the, Le
p = logits.softmax(0)
surprise = -p[0].log()
entropy = -(p * p.log()).sum()
print(*(f"{x:.3f}" for x in p))
print(f"surprise {surprise:.3f} nats, entropy {entropy:.3f} nats")
