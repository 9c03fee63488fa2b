import torch


def turn(x, place):                                   # rotary: rotate by the place
    c, s = torch.cos(place), torch.sin(place)
    return torch.stack([x[..., 0] * c - x[..., 1] * s, x[..., 0] * s + x[..., 1] * c], -1)

x = torch.tensor([[1.0, 0.2], [0.3, 1.0], [0.8, 0.6]])
place = torch.arange(3.0)
def score(x, place):
    return turn(x[2], place[2]) @ turn(x, place).T    # the last token looks at all
print("as it is    ", *(f"{s:.3f}" for s in score(x, place)))
print("all moved 50", *(f"{s:.3f}" for s in score(x, place + 50)))
print("two swapped ", *(f"{s:.3f}" for s in score(x[[1, 0, 2]], place)))
