import torch

without = torch.tensor([1.0, 0.5, 0.0])      # logits of: Paris, the, a
instruct = torch.tensor([1.5, -0.5, -0.5])   # what an instruction adds, by two heads
heads = torch.stack([instruct, torch.tensor([0.2, 0.1, 0.0])])
given = without + heads.sum(0)
p, q = given.softmax(0), without.softmax(0)
print(f"KL {(p * (p / q).log()).sum():.3f} nats")
for i, head in enumerate(heads):
    print(f"head {i}: vote for Paris against the {head[0] - head[1]:+.2f}")
