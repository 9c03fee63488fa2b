import torch

torch.manual_seed(0)
parts = {"embed": torch.randn(8), "head": torch.randn(8), "mlp": torch.randn(8)}
gain, W_U = torch.rand(8) + 0.5, torch.randn(3, 8)      # final norm, three words
x = sum(parts.values())
scale = x.pow(2).mean().rsqrt()                         # RMSNorm's scale, as it was
logits = W_U @ (scale * gain * x)
toward = scale * gain * (W_U[0] - W_U[1])               # word 0 against word 1
for name, part in parts.items():
    print(f"{name:5s} {part @ toward:+.3f}")
print(f"sum   {x @ toward:+.3f} = {logits[0] - logits[1]:+.3f}")
