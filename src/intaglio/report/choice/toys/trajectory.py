import torch

torch.manual_seed(0)
unembed = torch.eye(4)                                    # four tokens, each along an axis of its own
state = torch.tensor([1.0, 0.2, 0.0, 0.0])                # as it enters the first layer
writes = [torch.tensor([0.0, 0.5, 0.1, 0.0]), torch.tensor([0.0, 1.5, 0.0, 0.2]), torch.tensor([-0.5, 1.0, 0.0, 0.0])]
for layer, write in enumerate(writes):
    before, state = state, state + write
    turn = torch.rad2deg(torch.cosine_similarity(before, state, 0).arccos())
    normed = state / state.pow(2).mean().sqrt()           # the final norm, asked too early
    p = (unembed @ normed).softmax(0)
    alive = (-(p * p.log()).sum()).exp()                  # exp(entropy): candidates at once
    print(f"L{layer} step {write.norm():.2f} turn {turn:.1f} top {p.argmax()} p {p.max():.3f} candidates {alive:.2f}")
