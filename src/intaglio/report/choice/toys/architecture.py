import torch

votes = torch.tensor([2.0, 2.0, 0.5, -0.2])           # four heads; a later part caps what they say together at 3
def lead(kept):
    return torch.clamp(votes[kept].sum(), max=3.0) - 1.0
everyone = [0, 1, 2, 3]
alone = {h: float(lead(everyone) - lead([k for k in everyone if k != h])) for h in everyone}
print("alone      ", *(f"head {h}: {e:.1f}" for h, e in alone.items()))
weak = sorted(everyone, key=lambda h: abs(alone[h]))
for name, order in (("weakest", weak), ("strongest", weak[::-1])):
    for k in range(1, 4):
        gone = order[:k]
        left = lead([h for h in everyone if h not in gone])
        print(f"{name:9} first, {k} gone: lead {left:+.1f}, effects alone sum to {sum(alone[h] for h in gone):.1f}")
