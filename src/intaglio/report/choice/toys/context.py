import torch

torch.manual_seed(0)
E, W = torch.randn(6, 4), torch.randn(4)              # embeddings; the answer is a direction
ids = torch.tensor([1, 4, 2, 5])

def score(x):                                         # a bag of words that saturates
    return torch.tanh(x.sum(0)) @ W

x = E[ids].requires_grad_()
grad, = torch.autograd.grad(score(x), x)
for i in range(4):
    influence = score(E[ids]) - score(E[ids[torch.arange(4) != i]])
    print(f"token {i}: |grad| {grad[i].norm():.3f}, grad x input {grad[i] @ x[i]:+.3f}, influence {influence:+.3f}")
