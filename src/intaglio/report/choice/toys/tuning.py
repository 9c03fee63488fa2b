import torch

before = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])   # logits after three tokens
after = torch.tensor([[2.0, 0.1], [3.0, 0.0], [1.0, 1.0]])
p, q = before.softmax(-1), after.softmax(-1)
kl = (p * (p / q).log()).sum(-1)
print("KL by token:", *(f"{x:.3f}" for x in kl))
print("most after token", int(kl.argmax()))
