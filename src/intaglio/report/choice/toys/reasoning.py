import torch

steps = ["has 3", "buys 4", "eats -2"]            # the answer is 5
def answer(steps):                                # a noisy adder: sums the numbers it read, surer with each step
    numbers = torch.tensor([float(s.split()[-1]) for s in steps] or [0.0])
    return (-(torch.arange(10.0) - numbers.sum()).square() * len(numbers) / 4).softmax(0)

print("after each step", *(f"{answer(steps[:t])[5]:.3f}" for t in range(4)))
for i, step in enumerate(steps):
    ways = {"drop": [], "corrupt": [step[:-1] + str(int(step[-1]) + 1)], "reword": ["that is, " + step]}
    log_p = {k: (answer(steps[:i] + s + steps[i + 1 :])[5] / answer(steps)[5]).log() for k, s in ways.items()}
    print(step, *(f"{k} {v:+.2f}" for k, v in log_p.items()))
for some in (steps, steps[:1]):
    drawn = torch.multinomial(answer(some), 16, replacement=True, generator=torch.Generator().manual_seed(0))
    print(f"{len(some)} steps: {int((drawn == 5).sum())} of 16 samples say 5, most say {int(drawn.mode().values)}")
